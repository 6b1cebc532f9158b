"""Which search finds the best front in the same CPU time: ours, Optuna's samplers, one axis alone, one after another.

    python -m studies.search_benchmark --cpu-seconds 100 --seeds 3 --jobs 2
    python -m studies.search_benchmark --methods ours tpe --out runs/search-benchmark

The residual network on Fashion-MNIST, top-1 against bit operations. Every run has the same CPU time for all that it
does after the teacher is loaded: tables, drafts, Optuna, training, measuring. Its front is measured twice, on
validation and test: as the search left it, which is what its user gets; and, at most six members spread over the costs,
after one training that is the same for all, which tells how good the plans are.

The hypervolume is that of accuracy over the logarithm of the cost, between the teacher and 10 points below it, and
between the teacher's bit operations and a thousandth of them: 1 is a network of the teacher's accuracy that costs a
thousandth. What is done before is kept; a run that exists is not repeated.
`runs.csv` says of every run when, on which machine and in which time it found what.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
import torch
from safetensors.torch import load_file

from objectives import Top1
from search import Budget, DraftStart, Recipe, UniformStart
from search.evaluation.context import Context
from search.evaluation.reference import measure_teacher
from search.evaluation.subject import Subject
from search.evaluation.trial import key_of, seed_of
from search.loop.run import run
from search.proposals.defaults import resolved
from search.proposals.draft_records import draft_of
from search.proposals.draft_sampler import DraftSampler
from search.proposals.stratified import StratifiedRandom
from search.study import machine
from search.study.budget_clock import BudgetClock
from search.study.files import save_json, state_path
from search.study.front import front, spent
from search.study.storage import open_study
from spaces import BitWidths, PruneRatios, Ranks
from studies.fashion_mnist import residual
from studies.fronts import SHARE, SPLITS, along, hypervolume, profile, runs_of, summary

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from torch import nn

    from search import StudySpec
    from spaces import Plan

MEMBERS = 6
FINAL_RATE = 2e-3  # the same for all fronts, whatever their searches took
LOSES = 1.0  # points that a stage of the sequential pipeline may lose of validation accuracy


@dataclass(frozen=True)
class Found:
    """A plan on the front of a search, the bench whose teacher it is for, and what the search trained of it."""

    plan: Plan
    context: Context
    accuracy: float = math.nan
    weights: Path | None = None

    def network(self) -> nn.Module:
        """Return the network as the search left it: trained, or only scored."""
        student = self.context.build(self.plan)
        if self.weights is not None:
            student.load_state_dict(load_file(self.weights))
        return student.eval()


Search = Callable[["StudySpec", float, Path], tuple[list[Found], dict[str, float]]]


def searched(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
    """Search for so many CPU seconds; return the front and what was done."""
    started = time.process_time()
    study, context = _opened(replace(spec, budget=Budget(trials=None, cpu_seconds=seconds)), folder)
    measure_teacher(study, context)
    if not run(study, context, folder):
        sys.exit("stopped by a signal: half a search is no record")
    said = _said(study, context, started)
    return [
        Found(
            context.plan(trial.params),
            context,
            trial.values[0],  # noqa: PD011 - no pandas
            state_path(folder, trial.number),
        )
        for trial in front(study)
    ], said


def drafted(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
    """Spend all of the time on the table and the draft; nothing is trained."""
    started = time.process_time()
    study, context = _opened(spec, folder)
    clock = BudgetClock(Budget(trials=None, cpu_seconds=seconds))
    plans = DraftStart(plans=MEMBERS, share=1.0)(context, study, clock)
    said = _said(study, context, started)
    return [Found(context.plan(params), context) for params in plans], said


def _opened(spec: StudySpec, folder: Path) -> tuple[Study, Context]:
    folder.mkdir(parents=True, exist_ok=True)
    spec = resolved(spec)
    return open_study(spec, folder, None, create=True), Context(spec, Subject(spec, torch.device("cpu")))


def _said(study: Study, context: Context, started: float) -> dict[str, float]:
    draft = draft_of(study)
    return {
        "drafted": 0 if draft is None else len(draft.trials),
        "trained": spent(study),
        "cpu_seconds": time.process_time() - started,
        **{SHARE + name: seconds for name, seconds in context.cpu_profile.seconds.items()},
    }


def one_after_another(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
    """Prune, then factorize what that left, then quantize, a third of the time each.

    Of the first two stages the cheapest member goes on that loses at most a point; the front is that of the last.
    """
    total: dict[str, float] = {}
    members: list[Found] = []
    least = spec.objectives[0](spec.teacher) - LOSES
    for stage, axis in enumerate(spec.space.steps):
        if members:
            good = [member for member in members if member.accuracy >= least]
            chosen = good[-1] if good else members[0]  # the front begins with the most accurate
            spec = replace(spec, teacher=chosen.network())
        one = replace(spec, space=replace(spec.space, steps=(axis,)))
        members, said = searched(one, seconds / len(spec.space.steps), folder / str(stage))
        total = {name: total.get(name, 0) + value for name, value in said.items()}
    return members, total


def _alone(kind: type[Any]) -> Search:
    def alone(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
        steps = tuple(axis for axis in spec.space.steps if isinstance(axis, kind))
        return searched(replace(spec, space=replace(spec.space, steps=steps)), seconds, folder)

    return alone


def _with(sampler: Callable[..., BaseSampler], start: Callable[..., list[dict[str, float]]]) -> Search:
    def search(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
        return searched(replace(spec, sampler=sampler, start=start), seconds, folder)

    return search


METHODS: dict[str, Search] = {
    "ours": _with(DraftSampler, DraftStart()),
    "draft-alone": drafted,
    "tpe": _with(optuna.samplers.TPESampler, UniformStart()),
    "nsga2": _with(optuna.samplers.NSGAIISampler, UniformStart()),
    "random": _with(optuna.samplers.RandomSampler, UniformStart()),
    "stratified": _with(StratifiedRandom, UniformStart()),
    "tpe-after-draft": _with(optuna.samplers.TPESampler, DraftStart()),
    "prune-alone": _alone(PruneRatios),
    "ranks-alone": _alone(Ranks),
    "bits-alone": _alone(BitWidths),
    "one-after-another": one_after_another,
}


def measured(method: str, seed: int, seconds: float, final: Recipe, folder: Path) -> dict[str, Any]:
    """Search, train the front by the final recipe, and measure it; return the record of the run."""
    spec = replace(residual(), seed=seed)
    members, said = METHODS[method](spec, seconds, folder)
    costs = [_cost(member) for member in members]
    found = [_point(spec, member, member.network()) for member in members]
    points = []
    for member in (members[at] for at in _spread(np.log(costs), MEMBERS)):
        student = member.context.build(member.plan)
        member.context.train(student, member.plan, final, seed_of(spec, key_of(member.plan), 1))
        points.append(_point(spec, member, student))
    teacher = _values(spec, Subject(spec, torch.device("cpu")).finished)
    return {
        "method": method,
        "seed": seed,
        "budget": seconds,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine.words(),
        **said,
        "front": len(members),
        **{f"{split}_found": hypervolume(found, teacher, split) for split in SPLITS},
        **{split: hypervolume(points, teacher, split) for split in SPLITS},
        "teacher": teacher,
        "found": found,
        "points": points,
    }


def _point(spec: StudySpec, member: Found, student: nn.Module) -> dict[str, Any]:
    return {**_values(spec, member.context.subject.finish(student)), "plan": member.plan.words()}


def _values(spec: StudySpec, finished: nn.Module) -> dict[str, float]:
    top1, bops = spec.objectives
    assert isinstance(top1, Top1)
    return {"bops": bops(finished), "validation": top1(finished), "test": top1.on(spec.splits.test)(finished)}


def _cost(member: Found) -> float:
    (bops,) = (x for x in member.context.spec.objectives if x.is_cost)
    return member.context.cost_model.predict(member.plan).exact[bops.name]


def _spread(logs: np.ndarray, count: int) -> list[int]:
    """Return as many places, the ends and what lies nearest to even distances between them."""
    wanted = np.linspace(logs.min(), logs.max(), min(count, len(logs)))
    return sorted({int(np.abs(logs - place).argmin()) for place in wanted})


def main() -> None:
    """Run every method with every seed that is not there yet, each in a process of its own; print the table."""
    pd.set_option("display.width", None, "display.max_columns", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--cpu-seconds", type=float, default=100.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--final-epochs", type=float, default=0.5, help="of the training that all fronts get")
    parser.add_argument("--out", type=Path, default=Path("runs/search-benchmark"))
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; more make CPU time a little dearer for all"
    )
    parser.add_argument("--only", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.out / f"{options.cpu_seconds:g}"
    if options.only:
        method, seed = options.only[0], int(options.only[1])
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        final = replace(residual().recipe, epochs=options.final_epochs, learning_rate=FINAL_RATE)
        with tempfile.TemporaryDirectory() as scratch:
            record = measured(method, seed, options.cpu_seconds, final, Path(scratch))
        save_json(folder / f"{method}-{seed}.json", record)
        return
    waiting = [(method, seed) for seed in range(options.seeds) for method in options.methods]
    waiting = [(method, seed) for method, seed in waiting if not (folder / f"{method}-{seed}.json").exists()]
    given = ["--cpu-seconds", str(options.cpu_seconds), "--final-epochs", str(options.final_epochs)]
    command = [sys.executable, "-m", "studies.search_benchmark", *given, "--out", str(options.out)]
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            (method, seed): pool.submit(subprocess.run, [*command, "--only", method, str(seed)], check=False)
            for method, seed in waiting
        }
    records = pd.DataFrame([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))])
    runs_of(records).to_csv(folder / "runs.csv", index=False)
    sys.stdout.write(f"{summary(records)}\n")
    for when in ("found", "points"):
        sys.stdout.write(f"\ntest top-1 at a share of the teacher's cost, of {when}:\n{along(records, when=when)}\n")
    sys.stdout.write(f"\nshare of the CPU time, in percent:\n{profile(records)}\n")
    failed = [f"{method} with seed {seed}" for (method, seed), ended in runs.items() if ended.result().returncode]
    if failed:
        sys.exit(f"these runs failed and are missing from the table: {', '.join(failed)}; start again to repeat them")


if __name__ == "__main__":
    main()
