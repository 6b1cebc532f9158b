"""The words of the command line: commands, options, and their help. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import shlex
from dataclasses import dataclass
from typing import NamedTuple

from objectives.runtimes.names import RUNTIMES
from search.command_help import (
    ALL_HELP,
    ARTIFACTS_HELP,
    COMPLETION_EXAMPLES,
    EXIT_CODES,
    FORMATS_HELP,
    GOAL_HELP,
    IO_HELP,
    KEEP_HELP,
    MEMBER,
    PRINTED,
    SIZES_HELP,
    TYPICAL_USE,
    VERBOSE_HELP,
    WORKERS_HELP,
    Layout,
)
from search.command_parser import Parser
from search.init_options import add_init
from search.study.numbers import LARGEST_SEED, MOST
from search.study.passwords import shown

STORAGE_VARIABLE = "SLIMFRONT_STORAGE"  # in the environment, it names the storage; command lines show passwords
MOST_SEEDS = 1000  # of a confirmation (chosen)
MOST_WORKERS = 10_000  # of a run (chosen)
MOST_THREADS = 1024  # of torch (chosen); more is a slip, and may end the process
SMALLEST = 1e-6  # gigabytes (chosen)
SHORTEST = 1e-3  # minutes or CPU seconds (chosen)
MOST_SHOWN = 80  # characters of a word that an error quotes

# The names of --sampler: samplers of Optuna, and two of slimfront.
SAMPLERS = {
    "tpe": "search.proposals.joint_tpe:JointTPE",
    "nsga2": "optuna.samplers:NSGAIISampler",
    "gp": "optuna.samplers:GPSampler",
    "random": "optuna.samplers:RandomSampler",
    "stratified": "search.proposals.stratified:StratifiedRandom",
}
ENGINES = "processes", "ray"
SHELLS = "bash", "zsh", "fish"


class Command(NamedTuple):
    """A command.

    Attributes
    ----------
    acts
        The functions that carry it out, each with the options as argument: the first whose answer is not None counts.
        They are named, so that only what is used is imported.
    summary, text, example
        What the help shows.
    """

    acts: tuple[str, ...]
    summary: str
    text: str
    example: str


COMMANDS = {
    "init": Command(
        ("search.commands.init:command",),
        "write a study for your own network",
        "Write a file with a study for your network, your data and your device. What the options do not say is asked, "
        "and every answer is tried at once. The file runs as it is; change it as you like. Nothing is overwritten.",
        "--network my_net.py:MyNet --weights my_net.pt --data pictures",
    ),
    "inspect": Command(
        ("search.commands.inspect:command",),
        "show what can be compressed in each layer, or why not",
        "Print the teacher's values, the smallest plan, and for each layer what each axis can choose, or why it "
        "cannot. All that a run checks before it searches is checked: the data, a training step, the objectives, "
        "the teacher's file.",
        "--all",
    ),
    "run": Command(
        ("search.commands.run:command",),
        "search until the budget is spent, or continue a search",
        "Search for the Pareto front, then export, verify and print it. The search proposes plans, trains each as "
        "a candidate and measures its objectives. Ctrl-C stops after the present trial, and the same command "
        "continues. Without a bound on the command line, the budget of the study applies.",
        "--trials 40",
    ),
    "worker": Command(
        ("search.commands.worker:command",),
        "work on a study beside other workers, on this machine or on others",
        "Search as `run` does, as one of any number of workers of a study; they find each other in its storage. Each "
        "plan is scored and trained by one of them, and --trials counts the candidates of all. A worker keeps no "
        "state: if it dies, another one runs its trial again. Use it in the jobs of a cluster; the last step, "
        "exporting and verifying the front, is `slimfront confirm STUDY --seeds 0`.",
        "--minutes 5",
    ),
    "front": Command(
        ("search.commands.stored_front:command", "search.commands.front:command"),
        "print the front of a study",
        "Print the teacher and the Pareto front of a study from its storage; neither its network nor its data is "
        "loaded. A row has the measured objectives, the measurements of the exported file (file_..., "
        "latency_ratio), and the plan.",
        "--format csv",
    ),
    "report": Command(
        ("search.commands.report:command",),
        "write an interactive page, pictures and a table",
        "Write a report of the study and print the paths of its files. They are front.html (one file with linked "
        "views, which needs no network), front.png, candidates.csv (all trials), and a picture of each plan. With "
        "--watch the page is kept current while the study runs.",
        "--out report",
    ),
    "confirm": Command(
        ("search.commands.confirm:command",),
        "train the front for longer with several seeds and measure it on the test split",
        "Train the members of the front for longer with several seeds, then verify and print the front. A "
        "training has four times the epochs of the search, unless the study has a recipe for it. Mean and "
        "standard deviation are printed for validation and test; only this command reads the test split. Finished "
        "trainings are kept, so a stopped confirmation continues, and export uses the weights of the first seed "
        "from then on.",
        "--seeds 1",
    ),
    "export": Command(
        ("search.commands.export:command",),
        "write one member of the front as a verified file",
        "Write one member of the front as a file for the runtime, and print its verification. The file is read "
        "back in a new process and compared with the network; if they disagree, nothing is written. Next to it "
        "are plan.json, state.safetensors (from which search.export.rebuild restores the network), "
        "verification.json and README.md, a card that says what it is and how to load it.",
        "--pick 'max top1 where size_bytes<=20000' --io uint8,nhwc",
    ),
}


def study_words(options: argparse.Namespace) -> list[str]:
    """Return the study and the options that select it but for the storage, as the arguments of another command."""
    study = options.study if isinstance(options.study, str) else "STUDY"  # from Python it may be an object
    words = [study, *(word for setting in options.set for word in ("--set", setting))]
    for name in ("folder", "sampler", "seed", "runtime"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return words


def study_arguments(options: argparse.Namespace) -> str:
    """Return the same as typed after another command, without passwords."""
    words = study_words(options)
    if options.storage is not None:
        words += [] if options.storage == _usual_storage() else ["--storage", options.storage]
    return shlex.join(map(shown, words))


def _usual_storage() -> str | None:
    """Return the storage that the environment names, None if it names none."""
    return os.environ.get(STORAGE_VARIABLE) or None


@dataclass(frozen=True)
class Number:
    """The type of an option that takes a number, which argparse calls with the text.

    Attributes
    ----------
    kind
        `int` or `float`.
    least, most
        The range.
    """

    kind: type[int | float]
    least: float
    most: float = MOST

    def __call__(self, text: str) -> float:
        """Return the number.

        Raises
        ------
        argparse.ArgumentTypeError
            If the text is no finite number in the range.
        """
        with contextlib.suppress(ValueError):
            value = self.kind(text)
            if self.least <= value <= self.most:  # false for NaN
                return value
        what = "a whole number" if self.kind is int else "a number"
        raise argparse.ArgumentTypeError(
            f"must be {what} from {self.least:,} to {self.most:,}, but got {text[:MOST_SHOWN]!r}"
        )


def parser(kind: type[Parser] = Parser) -> Parser:
    """Return the parser of the command line, of a kind that may report errors in another way."""
    whole = kind(
        prog="slimfront", epilog=f"{TYPICAL_USE}\n\n{EXIT_CODES}", formatter_class=Layout,
        description="Compress a trained PyTorch network. A joint search over pruned channels, ranks, bit widths and "
        "distillation finds a Pareto front of small trained networks.",
    )  # fmt: skip
    whole.add_argument("--version", action="version", version=f"slimfront {_version()}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    whole.commands = commands.choices
    add_init(commands.add_parser, *COMMANDS["init"])
    added = {name: _command(commands, name) for name in COMMANDS if name != "init"}
    _completion(commands)
    added["inspect"].add_argument("--all", action="store_true", help=ALL_HELP)
    for name in ("run", "worker"):
        add = added[name].add_argument
        add(
            "--trials",
            type=Number(int, 1),
            help="trained candidates, with those of earlier runs (default: the study's, usually 40)",
        )
        add("--minutes", type=Number(float, SHORTEST), help=f"wall time of this {name}, in minutes")
        add("--cpu-seconds", type=Number(float, SHORTEST), help=f"CPU time of this {name}, in seconds")
        add("--goal", metavar="TEXT", help=GOAL_HELP)
        add("--keep-gb", type=Number(float, SMALLEST), metavar="N", help=KEEP_HELP)
        add("--artifacts", metavar="URL", help=ARTIFACTS_HELP)
    add("--crew", nargs=3, help=argparse.SUPPRESS)  # of a worker of `run`: name of the run, its number, their number
    add("--unverified", action="store_true", help=argparse.SUPPRESS)
    add = added["run"].add_argument
    add("--workers", type=Number(int, 1, MOST_WORKERS), default=1, metavar="N", help=WORKERS_HELP)
    add("--engine", choices=ENGINES, default="processes", help="what starts the workers (default: processes)")
    add(
        "--gpus-per-worker", type=Number(float, 0), default=0.0, metavar="G", help="of --engine ray; 0.5: two share one"
    )
    add("--unverified", action="store_true", help="do not export and verify the front at the end")
    add = added["report"].add_argument
    add("--out", help="folder of the report (default: report/ in the folder of the study)")
    add("--watch", action="store_true", help="keep the page current while a study runs, until Ctrl-C")
    add = added["confirm"].add_argument
    add("--seeds", type=Number(int, 0, MOST_SEEDS), default=3, help="trainings per member (default: 3; 0: only verify)")
    add("--pick", metavar="MEMBER", help=f"confirm only one member: {MEMBER}")
    add = added["export"].add_argument
    add("--pick", metavar="MEMBER", help=f"member: {MEMBER}; default: goal if there is one, else knee")
    add("--out", help="folder of the files (default: export/ in the folder of the study)")
    add("--replace", action="store_true", help="overwrite the folder of an earlier export")
    add("--io", default="", metavar="WORDS", help=IO_HELP)
    add("--dynamic-size", action="store_true", help="let the file take images of any height and width")
    add("--sizes", default="", metavar="HxW,...", help=SIZES_HELP)
    add("--preprocessing", action="store_true", help="let the file do the preprocessing that the study names")
    add("--license", default="", metavar="NAME", help="license of the weights, for the card: such as apache-2.0")
    return whole


def _version() -> str:
    """Return the version of slimfront; run from a checkout as `python -m search` it may not be installed."""
    try:
        return importlib.metadata.version("slimfront")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _command(commands: argparse._SubParsersAction[Parser], name: str) -> argparse.ArgumentParser:
    """Add a command with the options that all commands share."""
    described = COMMANDS[name]
    command = commands.add_parser(
        name, help=described.summary, description=described.text, formatter_class=Layout,
        epilog=f"example: slimfront {name} studies/digits.py:study {described.example}\n\n{PRINTED[name]}".rstrip(),
    )  # fmt: skip
    named = "file.py:function or package.module:function that returns a search.StudySpec"
    command.add_argument("study", help=f"{named}; or the folder of a study that was run before")
    shared = command.add_argument_group("options of all commands")
    add = shared.add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="argument of that function; may be repeated")
    add("--folder", help="folder of the study's files (default: runs/<name of the study>)")
    stored = (
        f"Optuna storage URL of the trials (default: the variable {STORAGE_VARIABLE}, or journal.log in the folder)"
    )
    add("--storage", default=_usual_storage(), metavar="URL", help=stored)
    sampled = "sampler of the plans after the initial designs (default: the study's; without one the draft, then tpe)"
    add("--sampler", choices=SAMPLERS, help=sampled)
    add("--runtime", help=f"runtime of the files: {', '.join(RUNTIMES)} (onnx-1.20 for a version), or the study's own")
    add("--seed", type=Number(int, 0, LARGEST_SEED), help="base seed of all random draws (default: the study's)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device to train on (auto: a GPU if any)")
    add(
        "--threads",
        type=Number(int, 1, MOST_THREADS),
        default=1,
        help="CPU threads (default: 1; more help large networks only)",
    )
    add("--format", choices=("table", "csv", "json"), default="table", help=FORMATS_HELP)
    loudness = shared.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    loudness.add_argument("-v", "--verbose", action="store_true", help=VERBOSE_HELP)
    add("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(acts=described.acts)
    return command


def _completion(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command that prints a script for a shell; it has no study, and no options."""
    what = "print a script with which a shell completes commands and options"
    command = commands.add_parser(
        "completion", help=what, formatter_class=Layout, description=f"{what.capitalize()}.", epilog=COMPLETION_EXAMPLES
    )
    command.add_argument("shell", choices=SHELLS, help="the shell")
    unused = {"debug": False, "quiet": False, "verbose": False, "storage": None}
    command.set_defaults(acts=("search.commands.completion:command",), **unused)
