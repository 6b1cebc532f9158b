"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from search.commands.loading import opened
from search.commands.showing import members_of
from search.evaluation.answers import ensure_same_answers
from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.evaluation.tried_precisions import leave_out_failing
from search.results.report import report
from search.study.console import print_result, step
from search.study.files import ensure_writable
from search.study.machine import device_named
from search.study.printed_tables import print_json, print_table

if TYPE_CHECKING:
    import argparse


def command(options: argparse.Namespace) -> int:
    """Write a report of the study and print the paths of its files; return the exit code."""
    study, spec, folder = opened(options)
    members = members_of(study, spec, folder)
    out = Path(options.out) if options.out else folder / "report"
    ensure_writable(out)
    with step("reading the network"):
        context = Context(spec, Subject(spec, device_named(options.device)))
        ensure_same_answers(study, context.subject)
        leave_out_failing(study, context.subject)
    with step("writing the report"):
        paths = report(study, context, members, out)
    if options.format == "table":
        for path in paths:
            print_result(str(path))
    elif options.format == "json":
        print_json({"folder": str(out), "files": [path.name for path in paths]})
    else:
        print_table(pd.DataFrame({"file": map(str, paths)}), options.format)
    return 0
