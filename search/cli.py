"""The command line: one verb for each thing that a user does with a study."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import torch
from rich.console import Console
from rich.table import Table

from search.confirm import confirm, weights_of
from search.errors import UserError
from search.export import export, record_words, teacher_file, verify_front
from search.front import front, need_front
from search.inspection import inspection, reach
from search.loading import load
from search.pick import pick
from search.progress import console
from search.report import report
from search.run import device_named, measure_teacher, run
from search.storage import folder_of, open_study, writable
from search.tables import confirmed_table, front_table
from search.trial import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from search.spec import StudySpec

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
}
STOPPED = 130  # as a shell says of a command that Ctrl-C ended
paper = Console(highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 2 an error that the user can mend, 130 stopped.

    Parameters
    ----------
    arguments
        Without the name of the program; by default those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        spec = _spec(options)
        act: Callable[[argparse.Namespace, StudySpec, Path], int] = options.act
        return act(options, spec, folder_of(spec, options.folder))
    except UserError as error:
        console.print(f"slimfront: {error}", markup=False)
        if options.debug:
            raise
        return 2
    except KeyboardInterrupt:
        console.print("stopped; nothing that was done is lost, the same command goes on")
        return STOPPED


def _spec(options: argparse.Namespace) -> StudySpec:
    spec = load(options.study, options.set)
    budget = spec.budget
    if getattr(options, "trials", None) is not None:
        budget = dataclasses.replace(budget, trials=options.trials)
    if getattr(options, "minutes", None) is not None:
        budget = dataclasses.replace(budget, minutes=options.minutes)
    sampler = SAMPLERS[options.sampler] if options.sampler else spec.sampler
    seed = spec.seed if options.seed is None else options.seed
    return dataclasses.replace(spec, budget=budget, sampler=sampler, seed=seed)


def _run(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    writable(folder)
    study = open_study(spec, folder, options.storage, create=True)
    bench = Bench(spec, device_named(options.device))
    reference = teacher_file(bench, folder)
    teacher = measure_teacher(study, bench)
    console.print(f"teacher: {', '.join(f'{name} {value:,.6g}' for name, value in teacher.items())}")
    console.print(f"its file: {reference.stat().st_size:,} bytes, {reference}")
    if not run(spec, study, bench, folder):
        again = f"slimfront run {options.study}{f' --folder {options.folder}' if options.folder else ''}"
        console.print(f"stopped with {len(front(study))} members on the front; go on with: {again} (and the same options)")
        return STOPPED
    members = need_front(study)
    failures = [] if options.unverified else verify_front(members, bench, folder)
    _show(front_table(study, spec, folder), options.format)
    for failure in failures:
        console.print(f"slimfront: {failure}", markup=False)
    return 1 if failures else 0


def _front(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    need_front(study)
    _show(front_table(study, spec, folder), options.format)
    return 0


def _inspect(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    del folder
    bench = Bench(spec, device_named(options.device))
    table = inspection(spec, bench.anatomy)
    _show(table, options.format)
    if options.format == "table":
        for axis in table.columns[4:]:
            paper.print(f"{axis} can act on {reach(table, axis):.1f}% of the multiply-adds")
    return 0


def _report(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    need_front(study)
    out = Path(options.out) if options.out else folder / "report"
    writable(out)
    for path in report(study, Bench(spec, device_named(options.device)), folder, out):
        paper.print(str(path))
    return 0


def _confirm(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    writable(folder)
    members = [pick(study, spec, options.pick)] if options.pick else need_front(study)
    bench = Bench(spec, device_named(options.device))
    found = confirm(members, bench, folder, options.seeds)
    _show(confirmed_table(found, spec, study), options.format)
    return 0


def _export(options: argparse.Namespace, spec: StudySpec, folder: Path) -> int:
    study = open_study(spec, folder, options.storage, create=False)
    trial = pick(study, spec, options.pick)
    out = Path(options.out) if options.out else folder / "export"
    if out.exists() and any(out.iterdir()) and not options.replace:
        raise UserError(f"{out} is not empty; name another folder with --out, or overwrite it with --replace")
    writable(out.parent)
    bench = Bench(spec, device_named(options.device))
    record = export(trial, bench, weights_of(folder, trial), out, teacher_file(bench, folder))
    paper.print(f"trial {trial.number}: {record_words(record)}")
    for path in sorted(out.iterdir()):
        paper.print(str(path))
    return 0


def _show(table: pd.DataFrame, form: str) -> None:
    """Print a table to standard output."""
    if form == "csv":
        sys.stdout.write(table.to_csv(index=False))
    elif form == "json":
        sys.stdout.write(table.to_json(orient="records", indent=1) + "\n")
    else:
        drawn = Table(box=None, header_style="bold", pad_edge=False)
        for name in table.columns:
            drawn.add_column(name, overflow="fold", justify="right" if table[name].dtype.kind in "fi" else "left")
        for row in table.itertuples(index=False):
            drawn.add_row(*(_cell(value) for value in row))
        paper.print(drawn, soft_wrap=not paper.is_terminal)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR0124, PLR2004
    return str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slimfront",
        description="Search for the lightest networks that keep a trained network's accuracy.",
        epilog="Start with: slimfront inspect studies/digits.py:study, then slimfront run studies/digits.py:study",
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    _verb(verbs, "inspect", _inspect, "say layer by layer what can be compressed, and why not", "")
    verb = _verb(verbs, "run", _run, "search, until the budget is spent or Ctrl-C; again: go on", "--trials 40")
    verb.add_argument("--trials", type=int, help="trained candidates in all, those of earlier runs included")
    verb.add_argument("--minutes", type=float, help="stop after so many minutes")
    verb.add_argument("--unverified", action="store_true", help="do not export and verify the front at the end")
    _verb(verbs, "front", _front, "print the front", "--format csv")
    verb = _verb(verbs, "report", _report, "write pictures, an interactive page and a table", "--out report")
    verb.add_argument("--out", help="folder of the report (default: report/ in the study's folder)")
    verb = _verb(verbs, "confirm", _confirm, "train the front longer over seeds and read the test split", "--seeds 3")
    verb.add_argument("--seeds", type=int, default=3, help="trainings a member (default: 3)")
    verb.add_argument("--pick", help="only this member: knee, a number, or 'max NAME where NAME<=VALUE'")
    verb = _verb(
        verbs, "export", _export, "write the picked member as verified files", "--pick 'max top1 where size_bytes<=20000'"
    )
    verb.add_argument("--pick", default="knee", help="knee (default), a number, or 'max NAME where NAME<=VALUE [and ...]'")
    verb.add_argument("--out", help="folder of the files (default: export/ in the study's folder)")
    verb.add_argument("--replace", action="store_true", help="overwrite the folder of an earlier export")
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
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
    verb.add_argument("--seed", type=int, help="base seed (default: the study's)")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where networks are trained")
    verb.add_argument("--threads", type=int, default=_threads(), help="CPU threads (default: %(default)s)")
    verb.add_argument("--format", choices=("table", "csv", "json"), default="table", help="of what is printed")
    verb.add_argument("--debug", action="store_true", help="show where an error came from")
    verb.set_defaults(act=act)
    return verb


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or torch.get_num_threads()
