"""Compare searches at equal CPU time: the default, Optuna's samplers, one axis alone, one axis after another.

    python -m studies.search_benchmark --cpu-seconds 100 --seeds 3 --jobs 2
    python -m studies.search_benchmark --methods ours tpe --out runs/search-benchmark
    python -m studies.search_benchmark --study speech --macs 0.25 --methods ours gp-after-draft

The study is the residual network on Fashion-MNIST, DS-CNN on spoken digits, MobileNetV3-small on photographs or the
demo's digits, top-1 against bit operations, with a limit on multiply-adds if `--macs` gives one. Every run gets the
same CPU time for everything after the teacher is loaded: tables, drafts, Optuna, training, measuring. Its front is
measured twice, on validation and test: as the search left it, which is what a user gets, and after a final training
that is equal for all searches, which shows how good the plans are. The final training takes at most six members, spread
over the costs.

The hypervolume is that of accuracy over the logarithm of the cost, between the teacher and 10 points below it, and
between the teacher's bit operations and a thousandth of them: 1 is a network with the teacher's accuracy at a
thousandth of its cost. Finished runs are kept and not repeated. `runs.csv` lists for every run the date, the machine,
the time and the front that it found.
"""

from __future__ import annotations

import argparse
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
from search.evaluation.reference import bounded
from search.evaluation.subject import Subject
from search.evaluation.trial import key_of, seed_of
from search.loop.run import run
from search.proposals.defaults import resolved
from search.proposals.draft_records import draft_of
from search.proposals.stratified import StratifiedRandom
from search.study import machine
from search.study.budget_clock import BudgetClock
from search.study.files import load_json, save_json
from search.study.front import front, trained_count
from search.study.storage import open_study
from search.study.weights import state_path
from spaces import BitWidths, PruneRatios, Ranks
from studies.bit_operations import STUDIES, study_of
from studies.fronts import PROFILE_PREFIX, SPLITS, accuracy_at_costs, hypervolume, profile, runs_table, summary

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from torch import nn

    from search import StudySpec
    from spaces import Plan

MEMBERS = 6  # of a front, at most, that get the final training
FINAL_RATE = 2e-3  # learning rate of the final training, equal for all fronts (fitted: studies/LOG.md)
STAGE_LOSS = 1.0  # points of validation top-1 below the teacher at which `one_after_another` still goes on


@dataclass(frozen=True)
class Found:
    """A member of the front that a search found.

    Attributes
    ----------
    plan
        The plan.
    context
        The context of the study; it holds the teacher that the plan compresses.
    accuracy
        Validation top-1 in the search, in percent; NaN if the search did not train the plan.
    weights
        The file of the trained weights; None if there are none.
    """

    plan: Plan
    context: Context
    accuracy: float = math.nan
    weights: Path | None = None

    def network(self) -> nn.Module:
        """Return the network as the search left it: with trained weights if there are any."""
        student = self.context.build(self.plan)
        if self.weights is not None:
            student.load_state_dict(load_file(self.weights))
        return student.eval()


Search = Callable[["StudySpec", float, Path], tuple[list[Found], dict[str, float]]]


def searched(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
    """Search for this many CPU seconds; return the front and the statistics of the run."""
    started = time.process_time()
    study, context = _new_study(replace(spec, budget=Budget(trials=None, cpu_seconds=seconds)), folder)
    context = bounded(study, context)
    if not run(study, context, folder):
        sys.exit("a signal stopped the search; an unfinished search writes no record")
    statistics = _statistics(study, context, started)
    return [
        Found(
            context.plan(trial.params),
            context,
            trial.values[0],  # noqa: PD011 - no pandas
            state_path(folder, trial.number),
        )
        for trial in front(study)
    ], statistics


def drafted(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
    """Spend all of the time on the table and the draft, without training."""
    started = time.process_time()
    study, context = _new_study(spec, folder)
    clock = BudgetClock(Budget(trials=None, cpu_seconds=seconds))
    plans = DraftStart(plans=MEMBERS, share=1.0)(context, study, clock)
    statistics = _statistics(study, context, started)
    return [Found(context.plan(params), context) for params in plans], statistics


def _new_study(spec: StudySpec, folder: Path) -> tuple[Study, Context]:
    folder.mkdir(parents=True, exist_ok=True)
    spec = resolved(spec)
    return open_study(spec, folder, None, create=True), Context(spec, Subject(spec, torch.device("cpu")))


def _statistics(study: Study, context: Context, started: float) -> dict[str, float]:
    """Return the number of plans in the draft and of trained ones, CPU seconds, and the CPU profile."""
    draft = draft_of(study)
    return {
        "drafted": 0 if draft is None else len(draft.trials),
        "trained": trained_count(study),
        "cpu_seconds": time.process_time() - started,
        **{PROFILE_PREFIX + name: seconds for name, seconds in context.cpu_profile.seconds.items()},
    }


def one_after_another(spec: StudySpec, seconds: float, folder: Path) -> tuple[list[Found], dict[str, float]]:
    """Prune, then factorize the pruned network, then quantize the result; each stage gets a third of the time.

    The teacher of the second and the third stage is the cheapest member of the stage before that is at most
    `STAGE_LOSS` points below the first teacher, or the most accurate one if there is none. The front is that of the
    last stage.
    """
    total: dict[str, float] = {}
    members: list[Found] = []
    least = spec.objectives[0](spec.teacher) - STAGE_LOSS
    for stage, axis in enumerate(spec.space.steps):
        if members:
            accurate = [member for member in members if member.accuracy >= least]
            chosen = accurate[-1] if accurate else members[0]  # the front is sorted, the most accurate first
            spec = replace(spec, teacher=chosen.network())
        stage_spec = replace(spec, space=replace(spec.space, steps=(axis,)))
        members, statistics = searched(stage_spec, seconds / len(spec.space.steps), folder / str(stage))
        total = {name: total.get(name, 0) + value for name, value in statistics.items()}
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
    "ours": searched,
    "draft-alone": drafted,
    "tpe": _with(optuna.samplers.TPESampler, UniformStart()),
    "nsga2": _with(optuna.samplers.NSGAIISampler, UniformStart()),
    "random": _with(optuna.samplers.RandomSampler, UniformStart()),
    "stratified": _with(StratifiedRandom, UniformStart()),
    "gp-after-draft": _with(optuna.samplers.GPSampler, DraftStart()),
    "prune-alone": _alone(PruneRatios),
    "ranks-alone": _alone(Ranks),
    "bits-alone": _alone(BitWidths),
    "one-after-another": one_after_another,
}


UNLIMITED = {"bits-alone", "one-after-another"}  # methods that need a study without a limit


def measured(method: str, spec: StudySpec, seconds: float, final: Recipe, folder: Path) -> dict[str, Any]:
    """Search, measure the front, train its members by the final recipe, measure them again; return the record."""
    members, statistics = METHODS[method](spec, seconds, folder)
    costs = [_cost(member) for member in members]
    found = [_point(spec, member, member.network()) for member in members]
    points = []
    for member in (members[index] for index in _spread(np.log(costs), MEMBERS)):
        student = member.context.build(member.plan)
        member.context.train(student, member.plan, final, seed_of(spec, key_of(member.plan), 1))
        points.append(_point(spec, member, student))
    teacher = _values(spec, Subject(spec, torch.device("cpu")).finished)
    return {
        "method": method,
        "seed": spec.seed,
        "budget": seconds,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine.words(),
        **statistics,
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
    (bops,) = (objective for objective in member.context.spec.objectives if objective.is_cost)
    return member.context.cost_model.predict(member.plan).exact[bops.name]


def _spread(log_costs: np.ndarray, count: int) -> list[int]:
    """Return at most `count` indices of costs that are about evenly spaced, both ends included."""
    wanted = np.linspace(log_costs.min(), log_costs.max(), min(count, len(log_costs)))
    return sorted({int(np.abs(log_costs - cost).argmin()) for cost in wanted})


def main() -> None:
    """Make every missing run of a method and a seed, each in a process of its own; print the tables."""
    pd.set_option("display.width", None, "display.max_columns", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="residual", choices=STUDIES, help="the study (default: residual)")
    parser.add_argument("--macs", type=float, help="limit on multiply-adds, a share of the teacher's (default: none)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, help="searches (default: all)")
    parser.add_argument("--cpu-seconds", type=float, default=100.0, help="of each run (default: 100)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per method (default: 3)")
    parser.add_argument(
        "--final-share", type=float, default=0.5, help="epochs of the final training, of the recipe's (default: 0.5)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/search-benchmark"), help="folder of the records")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time; with more, each does a little less per CPU second"
    )
    parser.add_argument("--only", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.only and options.macs is not None and (unable := sorted(UNLIMITED & set(options.methods))):
        parser.error(f"stages of single axes cannot meet a limit on multiply-adds; leave out {', '.join(unable)}")
    limit = "" if options.macs is None else f"-macs-{options.macs:g}"
    folder = options.out / f"{options.study}{limit}" / f"{options.cpu_seconds:g}"
    if options.only:
        method, seed = options.only[0], int(options.only[1])
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        spec = study_of(options.study, seed, options.macs)
        final = replace(spec.recipe.longer(options.final_share), learning_rate=FINAL_RATE)
        with tempfile.TemporaryDirectory() as scratch:
            record = measured(method, spec, options.cpu_seconds, final, Path(scratch))
        save_json(folder / f"{method}-{seed}.json", record)
        return
    wanted = [(method, seed) for seed in range(options.seeds) for method in options.methods]
    missing = [(method, seed) for method, seed in wanted if not (folder / f"{method}-{seed}.json").exists()]
    settings = ["--cpu-seconds", str(options.cpu_seconds), "--final-share", str(options.final_share)]
    settings += ["--study", options.study, *([] if options.macs is None else ["--macs", str(options.macs)])]
    command = [sys.executable, "-m", "studies.search_benchmark", *settings, "--out", str(options.out)]
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            (method, seed): pool.submit(subprocess.run, [*command, "--only", method, str(seed)], check=False)
            for method, seed in missing
        }
    records = pd.DataFrame([load_json(path) for path in sorted(folder.glob("*.json"))])
    runs_table(records).to_csv(folder / "runs.csv", index=False)
    sys.stdout.write(f"{summary(records)}\n")
    for column, title in (("found", "as found"), ("points", "after the final training")):
        table = accuracy_at_costs(records, front=column)
        sys.stdout.write(f"\ntest top-1 at fractions of the teacher's cost, {title}:\n{table}\n")
    sys.stdout.write(f"\nCPU profile, in percent:\n{profile(records)}\n")
    failed = [f"{method} with seed {seed}" for (method, seed), ended in runs.items() if ended.result().returncode]
    if failed:
        sys.exit(
            f"these runs failed and are missing from the tables: {', '.join(failed)}; the same command repeats them"
        )


if __name__ == "__main__":
    main()
