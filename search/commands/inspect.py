"""The command `inspect`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
from search.study.errors import UserError
from search.study.machine import device_named
from search.study.printed_tables import print_table

if TYPE_CHECKING:
    import argparse

    import pandas as pd

    from search.study.spec import StudySpec


class Inspected(NamedTuple):
    """What can be compressed in a network.

    Attributes
    ----------
    spec
        The study.
    layers
        The table that `search.results.inspection.inspection` returns.
    teacher
        What was measured on the teacher; empty if the runtime cannot take it.
    costs
        Lines about the teacher's file, what measurements predict, and the smallest plan.
    notes
        Lines about what is not counted.
    problem
        What would stop a run of the study; None if nothing does.
    """

    spec: StudySpec
    layers: pd.DataFrame
    teacher: dict[str, float]
    costs: list[str]
    notes: list[str]
    problem: UserError | ExportError | ImportError | None


def command(options: argparse.Namespace) -> int:
    """Print what can be compressed in each layer, or why not; return the exit code."""
    found = inspected(options)
    if options.format == "table":
        lines = [*found.costs, *summary(found.layers), "", *found.notes, *refusals(found.layers)]
        print_result("\n".join(lines))
        if options.all or options.verbose:
            print_result("")
            print_table(short(found.layers), options.format)
    else:
        print_table(found.layers, options.format)
    if found.problem is not None:
        raise found.problem
    return 0


def inspected(options: argparse.Namespace) -> Inspected:
    """Find out what can be compressed in each layer, and check all that a run checks before it searches."""
    spec, _ = loaded(options)
    device = device_named(options.device)
    teacher: dict[str, float] = {}
    costs: list[str] = []
    problem: UserError | ExportError | ImportError | None = None
    with tempfile.TemporaryDirectory() as temporary:
        try:
            context, file = prepared(spec, device, Path(temporary))
            teacher_bytes = file.stat().st_size
        except (ExportError, ImportError) as error:
            problem, context = error, Context(spec, Subject(spec, device))
    counts, notes = counted(context.subject.model, context.subject.example)
    if problem is None:
        directions = [objective.direction for objective in spec.objectives]
        study = optuna.create_study(directions=directions)  # in memory
        context = bounded(study, context)
        try_precisions(study, context)
        teacher = measure_teacher(study, context)
        values = ", ".join(f"{name} {in_digits(value)}" for name, value in teacher.items())
        costs.append(f"teacher: {values}; its {spec.runtime.name} file has {teacher_bytes:,} bytes")
        with step("predicting costs"):
            costs += [*predicted_words(context), *smallest(context, teacher)]
        problem = _unreachable(context)
    table = inspection(spec, context.subject.anatomy, counts)
    return Inspected(spec, table, teacher, costs, notes, problem)


def _unreachable(context: Context) -> UserError | None:
    """Return the error of limits that no plan meets, None if some plan may meet them."""
    try:
        if not limits_need_models(context):
            check_reachable(context)
    except UserError as error:
        return error
    return None
