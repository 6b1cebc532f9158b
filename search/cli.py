"""The command line: one verb for each thing that a user does with a study."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import optuna
import torch

from objectives.runtimes import RUNTIMES, ExportError, named
from search.evaluation.context import Context
from search.evaluation.reference import measure_teacher, prepared
from search.evaluation.subject import Subject
from search.loop.run import run
from search.loop.schedule import range_tested
from search.proposals.defaults import resolved
from search.proposals.draft_sampler import DraftSampler
from search.proposals.proxy_correlation import prediction_report
from search.proposals.stratified import StratifiedRandom
from search.results.confirm import confirm, weights_of
from search.results.export import export, replaceable, verify_front
from search.results.file_records import with_records
from search.results.inspection import inspection, reach
from search.results.pick import pick
from search.results.report import report
from search.results.tables import confirmed_table, files_note, front_table
from search.results.verification import record_words
from search.study.console import console, paper, print_table
from search.study.cpu_profile import FILES
from search.study.errors import UserError
from search.study.files import folder_of, writable
from search.study.front import front, need_front
from search.study.loader import load
from search.study.machine import device_named
from search.study.spec import Budget
from search.study.storage import open_study
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.results.file_records import Member
    from search.study.spec import StudySpec

SAMPLERS = {
    "draft": DraftSampler,
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "stratified": StratifiedRandom,
}
EXIT_STOPPED = 130  # as a shell says of a command that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 2 an error that the user can mend, 130 stopped.

    Parameters
    ----------
    arguments
        Without the name of the program; by default those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    options.again = shlex.join(["slimfront", *given])
    torch.set_num_threads(max(1, options.threads))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # fvcore traces with it; nothing a user can do
    try:
        spec = _spec(options)
        act: Callable[[argparse.Namespace, StudySpec, Path], int] = options.act
        return act(options, spec, folder_of(spec, options.folder))
    except (UserError, ExportError, ImportError) as error:
        console.print(f"slimfront: {' '.join(str(error).split())}")
        if options.debug:
            raise
        return 2
    except optuna.exceptions.StorageInternalError as error:
        console.print(f"slimfront: the storage failed: {first_line(error)}; the same command goes on", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print(f"stopped; nothing that was done is lost; go on with: {options.again}", markup=False)
        return EXIT_STOPPED


def _shared(options: argparse.Namespace) -> str:
    """Return the study and the options that every command on it needs, as they would be typed."""
    words = [options.study, *(word for setting in options.set for word in ("--set", setting))]
    for name in ("folder", "storage", "sampler", "seed", "runtime"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words)


def _spec(options: argparse.Namespace) -> StudySpec:
    spec = load(options.study, options.set)
    asked = {name: getattr(options, name, None) for name in ("trials", "minutes", "cpu_seconds")}
    try:
        budget = spec.budget if all(value is None for value in asked.values()) else Budget(**asked)
    except ValueError as error:
        raise UserError(str(error)) from error
    sampler = SAMPLERS[options.sampler] if options.sampler else spec.sampler
    seed = spec.seed if options.seed is None else options.seed
    runtime = named(options.runtime) if options.runtime else spec.runtime
    return resolved(dataclasses.replace(spec, budget=budget, sampler=sampler, seed=seed, runtime=runtime))


def _run(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    writable(folder)
    study = open_study(spec, folder, options.storage, create=True)
    context, reference = prepared(spec, device_named(options.device), folder)
    teacher = measure_teacher(study, context)
    console.print(f"teacher: {', '.join(f'{name} {value:,.6g}' for name, value in teacher.items())}")
    console.print(f"its file: {reference.stat().st_size:,} bytes, {reference}")
    if not run(study, context, folder):
        reached = len(front(study))
        console.print(f"stopped with {reached} members on the front; go on with: {options.again}", markup=False)
        return EXIT_STOPPED
    members = need_front(study)
    with context.cpu_profile.charge(FILES):
        weighed = _with_weights(members, folder)
        failures = [] if options.unverified else verify_front(weighed, context, folder, reference)
    _show_front(study, context.spec, with_records(members, spec.runtime, folder), options.format)
    if words := prediction_report(study, context.spec):
        console.print(words)
    console.print(context.cpu_profile.words())
    for failure in failures:
        console.print(f"slimfront: {failure}", markup=False)
    console.print(f"pictures: slimfront report {_shared(options)}", markup=False)
    console.print(f"files: slimfront export {_shared(options)} --pick knee", markup=False)
    return 1 if failures else 0


def _front(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    members = with_records(need_front(study), spec.runtime, folder)
    _show_front(study, spec, members, options.format)
    return 0


def _inspect(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    del folder
    context = Context(spec, Subject(spec, device_named(options.device)))  # says what does not fit, as `run` does
    table = inspection(spec, context.subject.anatomy)
    print_table(table, options.format)
    if options.format == "table":
        for axis in table.columns[4:]:
            paper.print(f"{axis} can act on {reach(table, axis):.1f}% of the multiply-adds")
    return 0


def _report(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    members = with_records(need_front(study), spec.runtime, folder)
    out = Path(options.out) if options.out else folder / "report"
    writable(out)
    context = Context(spec, Subject(spec, device_named(options.device)))
    for path in report(study, context, members, out):
        paper.print(str(path))
    return 0


def _confirm(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    if options.seeds < 0:
        raise UserError(f"--seeds must not be negative, but got {options.seeds}")
    writable(folder)
    members = [pick(study, spec, options.pick)] if options.pick else need_front(study)
    # what the runtime lacks is said before anything is trained
    context, reference = prepared(spec, device_named(options.device), folder)
    if options.seeds:
        found = confirm(members, context, folder, options.seeds, range_tested(study, context))
        teacher = json.loads((folder / "confirmed" / "front.json").read_text())["teacher"]
        print_table(confirmed_table(found, teacher, spec, study), options.format)
    failures = verify_front(_with_weights(members, folder), context, folder, reference)
    if options.format == "table" or not options.seeds:
        _show_front(study, context.spec, with_records(need_front(study), spec.runtime, folder), options.format)
    for failure in failures:
        console.print(f"slimfront: {failure}", markup=False)
    return 1 if failures else 0


def _with_weights(members: list[FrozenTrial], folder: Path) -> list[tuple[FrozenTrial, Path]]:
    """Return the members with the weights that their files are made of."""
    return [(trial, weights_of(folder, trial)) for trial in members]


def _export(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    trial = pick(study, spec, options.pick)
    out = Path(options.out) if options.out else folder / "export"
    replaceable(out, replace=options.replace)
    writable(out.parent)
    context, reference = prepared(spec, device_named(options.device), folder)
    record = export(trial, context, weights_of(folder, trial), out, reference)
    paper.print(f"trial {trial.number}: {record_words(record)}")
    paper.print(f"weights: {'of confirm, its first seed' if 'seed' in record['weights'] else 'of the search'}")
    for path in sorted(out.iterdir()):
        paper.print(str(path))
    return 0


def _show_front(study: Study, spec: StudySpec, members: list[Member], form: str) -> None:
    print_table(front_table(study, spec, members), form)
    console.print(files_note(spec, members))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"slimfront: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="slimfront",
        description="Search for the lightest networks that keep a trained network's accuracy.",
        epilog="Start with: slimfront inspect studies/digits.py:study, then slimfront run studies/digits.py:study",
    )
    parser.add_argument("--version", action="version", version=f"slimfront {importlib.metadata.version('slimfront')}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    _verb(verbs, "inspect", _inspect, "say layer by layer what can be compressed, and why not", "")
    verb = _verb(verbs, "run", _run, "search, until the budget is spent or Ctrl-C; again: go on", "--trials 40")
    verb.add_argument("--trials", type=int, help="trained candidates in all, those of earlier runs included")
    verb.add_argument("--minutes", type=float, help="spend so many minutes, however many trials that are")
    verb.add_argument("--cpu-seconds", type=float, help="spend so much CPU time, however many trials that are")
    verb.add_argument("--unverified", action="store_true", help="do not export and verify the front at the end")
    _verb(verbs, "front", _front, "print the front", "--format csv")
    verb = _verb(verbs, "report", _report, "write pictures, an interactive page and a table", "--out report")
    verb.add_argument("--out", help="folder of the report (default: report/ in the study's folder)")
    verb = _verb(
        verbs,
        "confirm",
        _confirm,
        "train the front longer over seeds and read test, then verify its files; export takes these weights",
        "--seeds 3 --runtime litert",
    )
    verb.add_argument("--seeds", type=int, default=3, help="trainings a member (default: 3); 0 only verifies files")
    verb.add_argument("--pick", help="only this member: knee, a number, or 'max NAME where NAME<=VALUE'")
    verb = _verb(
        verbs,
        "export",
        _export,
        "write the picked member as verified files",
        "--pick 'max top1 where size_bytes<=20000'",
    )
    verb.add_argument(
        "--pick", default="knee", help="knee (default), a number, or 'max NAME where NAME<=VALUE [and ...]'"
    )
    verb.add_argument("--out", help="folder of the files (default: export/ in the study's folder)")
    verb.add_argument("--replace", action="store_true", help="overwrite the folder of an earlier export")
    return parser


def _verb(
    verbs: argparse._SubParsersAction[_Parser],
    name: str,
    act: Callable[[argparse.Namespace, StudySpec, Path], int],
    words: str,
    example: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name, help=words, description=words.capitalize() + ".",
        epilog=f"example: slimfront {name} studies/digits.py:study {example}".rstrip(),
    )  # fmt: skip
    verb.add_argument("study", help="file.py:function or package.module:function that returns a StudySpec")
    verb.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of that function")
    verb.add_argument("--folder", help="the study's files (default: runs/<name of the study>)")
    verb.add_argument("--storage", help="any Optuna storage URL (default: journal.log in the folder)")
    verb.add_argument("--sampler", choices=SAMPLERS, help="Optuna's sampler (default: the study's)")
    verb.add_argument("--runtime", choices=RUNTIMES, help="what the files are for (default: the study's)")
    verb.add_argument("--seed", type=int, help="base seed (default: the study's)")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where networks are trained")
    verb.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1; more help large networks only)")
    verb.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of what is printed")
    verb.add_argument("--debug", action="store_true", help="show where an error came from")
    verb.set_defaults(act=act)
    return verb
