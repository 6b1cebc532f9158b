"""The command `report`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from search.command_line import study_arguments
from search.commands.loading import opened
from search.commands.showing import members_of
from search.evaluation.answers import ensure_same_answers
from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.evaluation.tried_precisions import leave_out_failing
from search.results.artifacts import attach
from search.results.file_records import record_folder
from search.results.report import report
from search.study.console import console, print_result, step
from search.study.files import ensure_writable
from search.study.front import front
from search.study.machine import device_named
from search.study.printed_tables import print_json, print_table
from search.study.stop_signals import handled_by

if TYPE_CHECKING:
    import argparse

    from optuna import Study

REFRESH_SECONDS = 10.0  # between two looks at a study that is watched (chosen)


def command(options: argparse.Namespace) -> int:
    """Write a report of the study and print the paths of its files; return the exit code."""
    paths = reported(options)
    if options.format == "table":
        for path in paths:
            print_result(str(path))
    elif options.format == "json":
        print_json({"folder": str(paths[0].parent), "files": [path.name for path in paths]})
    else:
        print_table(pd.DataFrame({"file": map(str, paths)}), options.format)
    return 0


def reported(options: argparse.Namespace) -> list[Path]:
    """Write a report of the study; return the paths of its files."""
    study, spec, folder = opened(options)
    out = Path(options.out) if options.out else folder / "report"
    words = study_arguments(options)
    if not options.watch:
        members_of(study, spec, folder)  # without a front there is nothing to report: say so before the data are read
    ensure_writable(out)
    with step("reading the network"):
        context = Context(spec, Subject(spec, device_named(options.device)))
        ensure_same_answers(study, context.subject)
        leave_out_failing(study, context.subject)
    if options.watch:
        _watch(study, context, folder, out, words)
    members = members_of(study, spec, folder)
    with step("writing the report"):
        paths = report(study, context, members, folder, out, words)
        for trial, _ in members:
            attach(study, trial, folder, {"plan.png": out / f"plan-{trial.number}.png"})
    return paths


def _watch(study: Study, context: Context, folder: Path, out: Path, words: str) -> None:
    """Write the page again whenever the study has changed, until Ctrl-C."""
    seen, waits, stop = None, False, threading.Event()
    with handled_by(lambda *_: stop.set()):  # an exception at any moment could be lost in a library
        while not stop.is_set():
            now = _state(study, context, folder)
            if now != seen and front(study):
                report(study, context, members_of(study, context.spec, folder), folder, out, words, REFRESH_SECONDS)
                if seen is None:
                    console.print(f"{out / 'front.html'} is kept current; Ctrl-C ends this and writes the pictures")
                seen = now
            elif seen is None and not waits:
                waits = True
                console.print("no candidate is on the front yet; waiting for the first one; Ctrl-C ends this")
            stop.wait(REFRESH_SECONDS)


def _state(study: Study, context: Context, folder: Path) -> tuple[int, float]:
    """Return what changes with every finished trial and every verified file."""
    finished = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    records = record_folder(folder, context.spec.runtime)
    return finished, max((path.stat().st_mtime for path in records.glob("*.json")), default=0.0)
