"""The command `inspect`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from objectives.objective import in_digits
from objectives.runtimes import ExportError
from search.commands.loading import loaded
from search.evaluation.context import Context
from search.evaluation.reference import bounded, measure_teacher, prepared
from search.evaluation.subject import Subject
from search.evaluation.tried_precisions import try_precisions
from search.proposals.limits import check_reachable, limits_need_models
from search.results.inspection import (
    counted,
    inspection,
    predicted_words,
    refusals,
    short,
    smallest,
)
from search.results.inspection_summary import summary
from search.study.console import print_result, step
from search.study.machine import device_named
from search.study.printed_tables import print_table

if TYPE_CHECKING:
    import argparse


def command(options: argparse.Namespace) -> int:
    """Print what can be compressed in each layer, or why not; return the exit code."""
    spec, _ = loaded(options)
    device, failed = device_named(options.device), None
    with tempfile.TemporaryDirectory() as temporary:
        try:
            context, file = prepared(spec, device, Path(temporary))
            teacher_bytes = file.stat().st_size
        except (ExportError, ImportError) as error:
            failed, context = error, Context(spec, Subject(spec, device))
    counts, left_out = counted(context.subject.model, context.subject.example)
    if failed is None:
        directions = [objective.direction for objective in spec.objectives]
        study = optuna.create_study(directions=directions)  # in memory
        context = bounded(study, context)
        try_precisions(study, context)
        teacher = measure_teacher(study, context)
    table = inspection(spec, context.subject.anatomy, counts)
    if options.format == "table" and failed is None:
        values = ", ".join(f"{name} {in_digits(value)}" for name, value in teacher.items())
        print_result(f"teacher: {values}; its {spec.runtime.name} file has {teacher_bytes:,} bytes")
        with step("predicting costs"):
            lines = [*predicted_words(context), *smallest(context, teacher)]
        print_result("\n".join(lines))
    if options.format == "table":
        print_result("\n".join([*summary(table), "", *left_out, *refusals(table)]))
        if options.all or options.verbose:
            print_result("")
            print_table(short(table), options.format)
    else:
        print_table(table, options.format)
    if failed is not None:
        raise failed
    if not limits_need_models(context):
        check_reachable(context)
    return 0
