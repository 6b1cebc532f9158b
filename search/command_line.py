"""The words of the command line: its options and their help, and the study that they describe."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from typing import TYPE_CHECKING, NoReturn

import optuna

from objectives.runtimes import RUNTIMES, named
from search.proposals.defaults import resolved
from search.proposals.stratified import StratifiedRandom
from search.study.errors import UserError
from search.study.loader import load
from search.study.machine import version_of
from search.study.spec import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from search.study.spec import StudySpec

    Act = Callable[[argparse.Namespace, StudySpec, Path], int]  # options, study and its folder to an exit code

# The names of --sampler: samplers of Optuna, and one of slimfront.
SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "stratified": StratifiedRandom,
}
# Parts of the help: of --pick, of --goal, and of the command line as a whole.
MEMBER = (
    "goal (meets the goal best), knee (best trade-off), the number of a trial, or 'max NAME [where NAME<=VALUE and "
    "...]' with any column of the front's table (also min, <, >, >=, =)"
)
GOAL_HELP = (
    "limits in words, separated by commas, such as '4x smaller, 2x faster, lose at most 1 point'; kept with the study"
)
TYPICAL_USE = """\
typical use:
  slimfront inspect studies/digits.py:study     what can be compressed, layer by layer
  slimfront run studies/digits.py:study         search and print the front
  slimfront report studies/digits.py:study      pictures and an interactive page
  slimfront confirm studies/digits.py:study     longer training, results on the test split
  slimfront export studies/digits.py:study      a verified file of one network
slimfront COMMAND --help explains a command; README.md shows how to write a study for your own network."""


def spec_of(options: argparse.Namespace) -> StudySpec:
    """Load the study and apply the options that change it, except for the runtime of a study that is stored already."""
    spec = load(options.study, options.set)
    bounds = {name: getattr(options, name, None) for name in ("trials", "minutes", "cpu_seconds")}
    try:
        budget = spec.budget if all(value is None for value in bounds.values()) else Budget(**bounds)
    except ValueError as error:
        raise UserError(str(error)) from error
    sampler = SAMPLERS[options.sampler] if options.sampler else spec.sampler
    seed = spec.seed if options.seed is None else options.seed
    spec = dataclasses.replace(spec, budget=budget, sampler=sampler, seed=seed)
    asked = on_runtime(options, spec)  # a new goal is about the files that are asked for
    goal = getattr(options, "goal", None)
    return resolved(dataclasses.replace(asked, goal=goal) if goal else spec)


def on_runtime(options: argparse.Namespace, spec: StudySpec) -> StudySpec:
    """Return the study with the runtime that the options name."""
    if options.runtime in {None, spec.runtime.name}:
        return spec
    try:
        return dataclasses.replace(spec, runtime=named(options.runtime))
    except ValueError as error:
        raise UserError(str(error)) from error


def study_arguments(options: argparse.Namespace) -> str:
    """Return the study and the options that select it, as typed after another command."""
    words = [options.study, *(word for setting in options.set for word in ("--set", setting))]
    for name in ("folder", "storage", "sampler", "seed", "runtime"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words)


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"slimfront: {message}; see {self.prog} --help\n")


def parser_of(acts: Mapping[str, Act]) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Parameters
    ----------
    acts
        The function of each command, whose docstring is the help of the command.
    """
    parser = _Parser(
        prog="slimfront", epilog=TYPICAL_USE, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compress a trained PyTorch network. A joint search over pruned channels, ranks, bit widths and\n"
        "distillation finds a Pareto front of small trained networks.",
    )  # fmt: skip
    version = version_of("slimfront") or "(not installed)"  # run from a checkout as `python -m search`
    parser.add_argument("--version", action="version", version=f"slimfront {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _command(commands, "inspect", acts, "show what can be compressed in each layer, or why not", "")
    command = _command(commands, "run", acts, "search until the budget is spent, or continue a search", "--trials 40")
    command.add_argument("--trials", type=int, help="number of trained candidates, including those of earlier runs")
    command.add_argument("--minutes", type=float, help="wall time of this run, in minutes")
    command.add_argument("--cpu-seconds", type=float, help="CPU time of this run, in seconds")
    command.add_argument("--goal", metavar="TEXT", help=GOAL_HELP)
    command.add_argument("--unverified", action="store_true", help="do not export and verify the front at the end")
    _command(commands, "front", acts, "print the front of a study", "--format csv")
    command = _command(commands, "report", acts, "write pictures, an interactive page and a table", "--out report")
    command.add_argument("--out", help="folder of the report (default: report/ in the folder of the study)")
    summary = "train the front for longer with several seeds and measure it on the test split"
    command = _command(commands, "confirm", acts, summary, "--seeds 3 --runtime litert")
    command.add_argument("--seeds", type=int, default=3, help="trainings per member (default: 3; 0: only verify)")
    command.add_argument("--pick", metavar="MEMBER", help=f"confirm only one member: {MEMBER}")
    summary, example = "write one member of the front as a verified file", "--pick 'max top1 where size_bytes<=20000'"
    command = _command(commands, "export", acts, summary, example)
    command.add_argument("--pick", metavar="MEMBER", help=f"member: {MEMBER}; default: goal if there is one, else knee")
    command.add_argument("--out", help="folder of the files (default: export/ in the folder of the study)")
    command.add_argument("--replace", action="store_true", help="overwrite the folder of an earlier export")
    return parser


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, acts: Mapping[str, Act], summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command, whose help is the docstring of its function, with the options that all commands share."""
    command = commands.add_parser(
        name, help=summary, description=" ".join((acts[name].__doc__ or summary).split()),
        epilog=f"example: slimfront {name} studies/digits.py:study {example}".rstrip(),
    )  # fmt: skip
    command.add_argument("study", help="file.py:function or package.module:function that returns a search.StudySpec")
    add = command.add_argument_group("options of all commands").add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="argument of that function; may be repeated")
    add("--folder", help="folder of the study's files (default: runs/<name of the study>)")
    add("--storage", help="Optuna storage URL of the trials (default: journal.log in the folder)")
    sampled = "sampler of the plans after the initial designs (default: the study's; without one the draft, then tpe)"
    add("--sampler", choices=SAMPLERS, help=sampled)
    add("--runtime", help=f"runtime of the files: {', '.join(RUNTIMES)}, or the study's own (default)")
    add("--seed", type=int, help="base seed of all random draws (default: the study's)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device to train on (auto: a GPU if any)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1; more help large networks only)")
    add("--format", choices=("table", "csv", "json"), default="table", help="format of printed tables (default: table)")
    add("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(act=acts[name])
    return command
