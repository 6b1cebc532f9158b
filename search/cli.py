"""The command line `slimfront`: inspect, run, front, report, confirm and export a study."""

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
from search.results.export import ensure_replaceable, export, verify_front
from search.results.file_records import with_records
from search.results.inspection import inspection, percent_acted_on, predicted_words
from search.results.pick import pick
from search.results.report import report
from search.results.tables import confirmed_table, files_note, front_table
from search.results.verification import record_words
from search.study.console import console, print_table, results_console
from search.study.cpu_profile import FILES
from search.study.errors import UserError
from search.study.files import ensure_writable, folder_of
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

    Act = Callable[[argparse.Namespace, StudySpec, Path], int]  # options, study and its folder to an exit code

# The names of --sampler: slimfront's own samplers, and some of Optuna's.
SAMPLERS = {
    "draft": DraftSampler,
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "stratified": StratifiedRandom,
}
EXIT_STOPPED = 130  # exit code: what shells report for a command that Ctrl-C ended (128 + SIGINT)
# Parts of the help: of --pick, and of the command line as a whole.
MEMBER = "knee (best trade-off), the number of a trial, or 'max NAME [where NAME<=VALUE and ...]' (also min, <, >, >=)"
TYPICAL_USE = """\
typical use:
  slimfront inspect studies/digits.py:study     what can be compressed, layer by layer
  slimfront run studies/digits.py:study         search and print the front
  slimfront report studies/digits.py:study      pictures and an interactive page
  slimfront confirm studies/digits.py:study     longer training, results on the test split
  slimfront export studies/digits.py:study      a verified file of one network
slimfront COMMAND --help explains a command; README.md shows how to write a study for your own network."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if all went well, 1 if a file failed verification, 2 after an error, 130 if stopped.

    Parameters
    ----------
    arguments
        The arguments without the name of the program; by default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    options.command_line = shlex.join(["slimfront", *words])
    torch.set_num_threads(max(1, options.threads))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # from fvcore; users cannot avoid it
    try:
        spec = _spec(options)
        act: Act = options.act
        return act(options, spec, folder_of(spec, options.folder))
    except (UserError, ExportError, ImportError) as error:
        console.print(f"slimfront: {' '.join(str(error).split())}")
        if options.debug:
            raise
        return 2
    except optuna.exceptions.StorageInternalError as error:
        console.print(f"slimfront: the storage failed: {first_line(error)}; run the command again", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print(f"stopped; all finished work is kept; continue with: {options.command_line}", markup=False)
        return EXIT_STOPPED


def _study_arguments(options: argparse.Namespace) -> str:
    """Return the study and the options that select it, as typed after another command."""
    words = [options.study, *(word for setting in options.set for word in ("--set", setting))]
    for name in ("folder", "storage", "sampler", "seed", "runtime"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words)


def _spec(options: argparse.Namespace) -> StudySpec:
    """Load the study and apply the options that change it."""
    spec = load(options.study, options.set)
    bounds = {name: getattr(options, name, None) for name in ("trials", "minutes", "cpu_seconds")}
    try:
        budget = spec.budget if all(value is None for value in bounds.values()) else Budget(**bounds)
        runtime = spec.runtime if options.runtime in {None, spec.runtime.name} else named(options.runtime)
    except ValueError as error:
        raise UserError(str(error)) from error
    sampler = SAMPLERS[options.sampler] if options.sampler else spec.sampler
    seed = spec.seed if options.seed is None else options.seed
    return resolved(dataclasses.replace(spec, budget=budget, sampler=sampler, seed=seed, runtime=runtime))


def _run(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Search for the Pareto front, then export, verify and print it.

    The search proposes plans, trains each as a candidate and measures its objectives. Ctrl-C stops after the present
    trial, and the same command continues. Without a bound on the command line, the budget of the study applies.
    """
    ensure_writable(folder)
    study = open_study(spec, folder, options.storage, create=True)
    context, reference = prepared(spec, device_named(options.device), folder)
    teacher = measure_teacher(study, context)
    console.print(f"teacher: {', '.join(f'{name} {value:,.6g}' for name, value in teacher.items())}")
    console.print(f"teacher's file: {reference.stat().st_size:,} bytes, {reference}")
    if not run(study, context, folder):
        count = len(front(study))
        console.print(f"stopped with {count} members on the front; continue with: {options.command_line}", markup=False)
        return EXIT_STOPPED
    members = need_front(study)
    with context.cpu_profile.charge(FILES):
        with_weights = _with_weights(members, folder)
        failures = [] if options.unverified else verify_front(with_weights, context, folder, reference)
    _show_front(study, context.spec, with_records(members, spec.runtime, folder), options.format)
    if note := prediction_report(study, context.spec):
        console.print(note)
    console.print(context.cpu_profile.words())
    for failure in failures:
        console.print(f"slimfront: {failure}", markup=False)
    console.print(f"for pictures: slimfront report {_study_arguments(options)}", markup=False)
    console.print(f"for a file: slimfront export {_study_arguments(options)} --pick knee", markup=False)
    return 1 if failures else 0


def _front(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Print the teacher and the Pareto front of a study; nothing is trained.

    A row has the measured objectives, the measurements of the exported file (file_..., latency_ratio), and the plan.
    """
    study = open_study(spec, folder, options.storage, create=False)
    members = with_records(need_front(study), spec.runtime, folder)
    _show_front(study, spec, members, options.format)
    return 0


def _inspect(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Print for each layer its share of the multiply-adds, and what each axis can choose, or "no:" and the reason."""
    del folder
    context = Context(spec, Subject(spec, device_named(options.device)))  # reports what does not fit, as `run` does
    table = inspection(spec, context.subject.anatomy)
    print_table(table, options.format)
    if options.format == "table":
        lines = [f"{x} can act on {percent_acted_on(table, x):.1f}% of the multiply-adds" for x in table.columns[4:]]
        results_console.print("\n".join([*lines, *predicted_words(context)]))
    return 0


def _report(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    """Write a report of the study and print the paths of its files.

    They are front.png, front.html (interactive, offline), candidates.csv (all trials), and a picture of each plan.
    """
    study = open_study(spec, folder, options.storage, create=False)
    members = with_records(need_front(study), spec.runtime, folder)
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
    study = open_study(spec, folder, options.storage, create=False)
    if options.seeds < 0:
        raise UserError(f"--seeds must not be negative, but got {options.seeds}")
    ensure_writable(folder)
    members = [pick(study, spec, options.pick)] if options.pick else need_front(study)
    # The runtime is tried on the teacher before any training, so that a missing operator shows early.
    context, reference = prepared(spec, device_named(options.device), folder)
    if options.seeds:
        records = confirm(members, context, folder, options.seeds, range_tested(study, context))
        teacher = json.loads((folder / "confirmed" / "front.json").read_text())["teacher"]
        print_table(confirmed_table(records, teacher, spec, study), options.format)
    failures = verify_front(_with_weights(members, folder), context, folder, reference)
    if options.format == "table" or not options.seeds:
        _show_front(study, context.spec, with_records(need_front(study), spec.runtime, folder), options.format)
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
    study = open_study(spec, folder, options.storage, create=False)
    trial = pick(study, spec, options.pick)
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


def _show_front(study: Study, spec: StudySpec, members: list[Member], output_format: str) -> None:
    """Print the table of the front, and the note on its files."""
    print_table(front_table(study, spec, members), output_format)
    console.print(files_note(spec, members))


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"slimfront: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="slimfront", epilog=TYPICAL_USE, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compress a trained PyTorch network. A joint search over pruned channels, ranks, bit widths and\n"
        "distillation finds a Pareto front of small trained networks.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"slimfront {importlib.metadata.version('slimfront')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _command(commands, "inspect", _inspect, "show what can be compressed in each layer, or why not", "")
    command = _command(commands, "run", _run, "search until the budget is spent, or continue a search", "--trials 40")
    command.add_argument("--trials", type=int, help="number of trained candidates, including those of earlier runs")
    command.add_argument("--minutes", type=float, help="wall time of this run, in minutes")
    command.add_argument("--cpu-seconds", type=float, help="CPU time of this run, in seconds")
    command.add_argument("--unverified", action="store_true", help="do not export and verify the front at the end")
    _command(commands, "front", _front, "print the front of a study", "--format csv")
    command = _command(commands, "report", _report, "write pictures, an interactive page and a table", "--out report")
    command.add_argument("--out", help="folder of the report (default: report/ in the folder of the study)")
    summary = "train the front for longer with several seeds and measure it on the test split"
    command = _command(commands, "confirm", _confirm, summary, "--seeds 3 --runtime litert")
    command.add_argument("--seeds", type=int, default=3, help="trainings per member (default: 3; 0: only verify)")
    command.add_argument("--pick", metavar="MEMBER", help=f"confirm only one member: {MEMBER}")
    summary, example = "write one member of the front as a verified file", "--pick 'max top1 where size_bytes<=20000'"
    command = _command(commands, "export", _export, summary, example)
    command.add_argument("--pick", metavar="MEMBER", default="knee", help=f"member: {MEMBER}; default: knee")
    command.add_argument("--out", help="folder of the files (default: export/ in the folder of the study)")
    command.add_argument("--replace", action="store_true", help="overwrite the folder of an earlier export")
    return parser


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, act: Act, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command, whose help is the docstring of its function, with the options that all commands share."""
    command = commands.add_parser(
        name, help=summary, description=" ".join((act.__doc__ or summary).split()),
        epilog=f"example: slimfront {name} studies/digits.py:study {example}".rstrip(),
    )  # fmt: skip
    command.add_argument("study", help="file.py:function or package.module:function that returns a search.StudySpec")
    add = command.add_argument_group("options of all commands").add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="argument of that function; may be repeated")
    add("--folder", help="folder of the study's files (default: runs/<name of the study>)")
    add("--storage", help="Optuna storage URL of the trials (default: journal.log in the folder)")
    add("--sampler", choices=SAMPLERS, help="sampler that proposes plans (default: the study's, mostly draft)")
    add("--runtime", help=f"runtime of the files: {', '.join(RUNTIMES)}, or the study's own (default)")
    add("--seed", type=int, help="base seed of all random draws (default: the study's)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device to train on (auto: a GPU if any)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1; more help large networks only)")
    add("--format", choices=("table", "csv", "json"), default="table", help="format of printed tables (default: table)")
    add("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(act=act)
    return command
