"""The command line `slimfront`: inspect, run, front, report, confirm and export a study."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import torch

from objectives.runtimes import ExportError
from search.command_line import on_runtime, parser_of, spec_of, study_arguments
from search.evaluation.context import Context
from search.evaluation.reference import bounded, measure_teacher, prepared
from search.evaluation.subject import Subject
from search.loop.run import run
from search.loop.schedule import range_tested
from search.proposals.limits import check_reachable, limits_need_models
from search.proposals.proxy_correlation import prediction_report
from search.results.confirm import confirm, weights_of
from search.results.export import VerificationTime, ensure_replaceable, export, verify_front
from search.results.file_records import with_records
from search.results.goal import goal_note
from search.results.inspection import (
    counted,
    inspection,
    percent_acted_on,
    predicted_words,
    refusals,
    short,
    smallest,
)
from search.results.pick import pick
from search.results.report import report
from search.results.tables import confirmed_table, files_note, front_table
from search.results.verification import record_words
from search.study.budget_clock import PROCESS_START, BudgetClock, now
from search.study.console import console, print_table, results_console
from search.study.cpu_profile import FILES
from search.study.errors import LimitsUnmet, UserError, machine_fault
from search.study.files import ensure_writable, folder_of
from search.study.front import front, need_front
from search.study.goal import limits_of_goal, measured_for_goal, with_stored_goal
from search.study.machine import device_named
from search.study.storage import open_study
from spaces.network.messages import first_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.command_line import Act
    from search.results.file_records import Member
    from search.study.spec import StudySpec

EXIT_STOPPED = 130  # exit code: what shells report for a command that Ctrl-C ended (128 + SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if all went well, 1 if a file failed verification, 2 after an error, 130 if stopped.

    Parameters
    ----------
    arguments
        The arguments without the name of the program; by default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser_of(ACTS).parse_args(words)
    options.command_line = shlex.join(["slimfront", *words])
    options.start = PROCESS_START if arguments is None else now()
    torch.set_num_threads(max(1, options.threads))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # from fvcore; users cannot avoid it
    warnings.filterwarnings("ignore", "LSTM with projections")  # of its speed
    warnings.filterwarnings("ignore", "RNN module weights")  # from cuDNN, of weights that axes may replace one by one
    try:
        spec = spec_of(options)
        act: Act = options.act
        return act(options, spec, folder_of(spec, options.folder))
    except (UserError, ExportError, ImportError) as error:
        for line in error.details if isinstance(error, LimitsUnmet) else ():
            console.print(line)
        console.print(f"slimfront: {' '.join(str(error).split())}")
        if options.debug:
            raise
        return 2
    except optuna.exceptions.StorageInternalError as error:
        console.print(f"slimfront: the storage failed: {first_line(error)}; run the command again", markup=False)
        return 2
    except (MemoryError, OSError, torch.OutOfMemoryError) as error:
        console.print(f"slimfront: {machine_fault(error)}", markup=False)
        if options.debug:
            raise
        return 2
    except KeyboardInterrupt:
        console.print(f"stopped; all finished work is kept; continue with: {options.command_line}", markup=False)
        return EXIT_STOPPED


def _run(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Search for the Pareto front, then export, verify and print it.

    The search proposes plans, trains each as a candidate and measures its objectives. Ctrl-C stops after the present
    trial, and the same command continues. Without a bound on the command line, the budget of the study applies.
    """
    ensure_writable(folder)
    study = open_study(spec, folder, options.storage, create=True)
    spec = on_runtime(options, with_stored_goal(study, spec))
    context, reference = prepared(spec, device_named(options.device), folder)
    context = bounded(study, context)
    teacher = measure_teacher(study, context)
    console.print(f"teacher: {', '.join(f'{name} {value:,.6g}' for name, value in teacher.items())}")
    console.print(f"teacher's file: {reference.stat().st_size:,} bytes, {reference}")
    for left_out in counted(context.subject.model, context.subject.example)[1]:
        console.print(left_out, markup=False)
    _print_limits(context.spec)
    clock = BudgetClock(context.spec.budget, *options.start)
    verifying = VerificationTime(context, folder, reference, wall=spec.budget.minutes is not None)
    reserve = None if options.unverified else lambda: verifying.of(_with_weights(front(study), folder))
    if not run(study, context, folder, clock, reserve):
        count = len(front(study))
        console.print(f"stopped with {count} members on the front; continue with: {options.command_line}", markup=False)
        return EXIT_STOPPED
    trials = need_front(study, spec)
    with context.cpu_profile.charge(FILES):
        clock.reserved = 0.0  # the reserve is for these files
        with_weights = _with_weights(trials, folder)
        failures = [] if options.unverified else verify_front(with_weights, context, folder, reference, clock)
    _show_front(study, context.spec, _members(study, spec, folder), options.format)
    if note := prediction_report(study, context.spec):
        console.print(note)
    console.print(context.cpu_profile.words())
    for failure in failures:
        console.print(f"slimfront: {failure}", markup=False)
    console.print(f"for pictures: slimfront report {study_arguments(options)}", markup=False)
    best = "goal" if spec.goal else "knee"
    console.print(f"for a file: slimfront export {study_arguments(options)} --pick {best}", markup=False)
    return 1 if failures else 0


def _front(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Print the teacher and the Pareto front of a study; nothing is trained.

    A row has the measured objectives, the measurements of the exported file (file_..., latency_ratio), and the plan.
    """
    study, spec = _opened(options, spec, folder)
    _show_front(study, spec, _members(study, spec, folder), options.format)
    return 0


def _inspect(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Print the teacher's values, the smallest plan, and for each layer what each axis can choose, or why it cannot.

    All that a run checks before it searches is checked: the data, a training step, the objectives, the teacher's file.
    With --format csv or json, only the table of the layers is printed, and a layer's reason follows "no:".
    """
    del folder
    device, failed = device_named(options.device), None
    with tempfile.TemporaryDirectory() as temporary:
        try:
            context, file = prepared(spec, device, Path(temporary))
            teacher_bytes = file.stat().st_size
        except (ExportError, ImportError) as error:
            failed, context = error, Context(spec, Subject(spec, device))
    counts, left_out = counted(context.subject.model, context.subject.example)
    table = inspection(spec, context.subject.anatomy, counts)
    if failed is None:
        directions = [objective.direction for objective in spec.objectives]
        study = optuna.create_study(directions=directions)  # in memory
        context = bounded(study, context)
        teacher = measure_teacher(study, context)
    if options.format == "table" and failed is None:
        values = ", ".join(f"{name} {value:,.6g}" for name, value in teacher.items())
        results_console.print(f"teacher: {values}; its {spec.runtime.name} file has {teacher_bytes:,} bytes")
        results_console.print("\n".join([*predicted_words(context), *smallest(context, teacher)]), markup=False)
    if options.format == "table":
        print_table(short(table), options.format)
        lines = [f"{x} can act on {percent_acted_on(table, x):.1f}% of the multiply-adds" for x in table.columns[4:]]
        results_console.print("\n".join([*lines, *left_out, *refusals(table)]), markup=False)
    else:
        print_table(table, options.format)
    if failed is not None:
        raise failed
    if not limits_need_models(context):
        check_reachable(context)
    return 0


def _report(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Write a report of the study and print the paths of its files.

    They are front.png, front.html (interactive, offline), candidates.csv (all trials), and a picture of each plan.
    """
    study, spec = _opened(options, spec, folder)
    members = _members(study, spec, folder)
    out = Path(options.out) if options.out else folder / "report"
    ensure_writable(out)
    context = Context(spec, Subject(spec, device_named(options.device)))
    for path in report(study, context, members, out):
        results_console.print(str(path))
    return 0


def _confirm(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Train the members of the front for longer with several seeds, then verify and print the front.

    A training has four times the epochs of the search, unless the study has a recipe for it. Mean and standard
    deviation are printed for validation and test; only this command reads the test split. Finished trainings are kept,
    so a stopped confirmation continues, and export uses the weights of the first seed from then on.
    """
    study, spec = _opened(options, spec, folder)
    if options.seeds < 0:
        raise UserError(f"--seeds must not be negative, but got {options.seeds}")
    ensure_writable(folder)
    front_members = _members(study, spec, folder)
    trials = [pick(study, spec, front_members, options.pick)] if options.pick else [one.trial for one in front_members]
    # The runtime is tried on the teacher before any training, so that a missing operator shows early.
    context, reference = prepared(spec, device_named(options.device), folder)
    if options.seeds:
        records = confirm(trials, context, folder, options.seeds, range_tested(study, context))
        teacher = json.loads((folder / "confirmed" / "front.json").read_text())["teacher"]
        print_table(confirmed_table(records, teacher, spec, study), options.format)
    failures = verify_front(_with_weights(trials, folder), context, folder, reference)
    if options.format == "table" or not options.seeds:
        _show_front(study, context.spec, _members(study, spec, folder), options.format)
    for failure in failures:
        console.print(f"slimfront: {failure}", markup=False)
    return 1 if failures else 0


def _with_weights(members: list[FrozenTrial], folder: Path) -> list[tuple[FrozenTrial, Path]]:
    """Return the members, each with the path of the weights to export."""
    return [(trial, weights_of(folder, trial)) for trial in members]


def _export(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Write one member of the front as a file for the runtime, and print its verification.

    The file is read back in a new process and compared with the network; if they disagree, nothing is written. Next to
    it are plan.json, state.safetensors (from which search.export.rebuild restores the network) and verification.json.
    """
    study, spec = _opened(options, spec, folder)
    trial = pick(study, spec, _members(study, spec, folder), options.pick or ("goal" if spec.goal else "knee"))
    out = Path(options.out) if options.out else folder / "export"
    ensure_replaceable(out, replace=options.replace)
    ensure_writable(out.parent)
    context, reference = prepared(spec, device_named(options.device), folder)
    record = export(trial, context, weights_of(folder, trial), out, reference)
    results_console.print(f"trial {trial.number}: {record_words(record)}")
    results_console.print(f"weights: {'of confirm (first seed)' if 'seed' in record['weights'] else 'of the search'}")
    for path in sorted(out.iterdir()):
        results_console.print(str(path))
    return 0


def _opened(options: argparse.Namespace, spec: StudySpec, folder: Path) -> tuple[Study, StudySpec]:
    """Open a stored study; return it, and its specification with its goal and on the runtime of the options."""
    study = open_study(spec, folder, options.storage, create=False)
    return study, on_runtime(options, with_stored_goal(study, spec))


def _members(study: Study, spec: StudySpec, folder: Path) -> list[Member]:
    """Return the members of the front with the verification records of their files."""
    return with_records(need_front(study, spec), spec.runtime, folder)


def _print_limits(spec: StudySpec) -> None:
    """Print the phrases of the goal and the limits relative to the teacher, with their bounds."""
    phrases = {str(limit): f"goal {phrase!r}: " for phrase, limit in limits_of_goal(spec)}
    added = measured_for_goal(spec)
    for limit in spec.limits:
        if str(limit) in phrases or limit.is_relative:
            note = "; measured for this goal" if limit.objective.name in added else ""
            console.print(f"{phrases.get(str(limit), 'limit: ')}{limit.words}{note}")


def _show_front(study: Study, spec: StudySpec, members: list[Member], output_format: str) -> None:
    """Print the table of the front, and the notes on its files and its goal."""
    print_table(front_table(study, spec, members), output_format)
    console.print(files_note(spec, members))
    if note := goal_note(study, spec, members):
        console.print(note)


ACTS: dict[str, Act] = {
    "inspect": _inspect,
    "run": _run,
    "front": _front,
    "report": _report,
    "confirm": _confirm,
    "export": _export,
}
