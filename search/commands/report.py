"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from search.commands.loading import opened
from search.commands.showing import members_of
from search.evaluation.answers import ensure_same_answers
from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.evaluation.tried_precisions import leave_out_failing
from search.results.report import report
from search.study.console import results_console
from search.study.files import ensure_writable
from search.study.machine import device_named

if TYPE_CHECKING:
    import argparse


def command(options: argparse.Namespace) -> int:
    """Write a report of the study and print the paths of its files; return the exit code."""
    for path in reported(options):
        results_console.print(str(path))
    return 0


def reported(options: argparse.Namespace) -> list[Path]:
    """Write a report of the study; return the paths of its files."""
    study, spec, folder = opened(options)
    members = members_of(study, spec, folder)
    out = Path(options.out) if options.out else folder / "report"
    ensure_writable(out)
    context = Context(spec, Subject(spec, device_named(options.device)))
    ensure_same_answers(study, context.subject)
    leave_out_failing(study, context.subject)
    return report(study, context, members, out)
