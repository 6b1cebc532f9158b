"""The draft: hundreds of plans scored before training or after a few steps, in an Optuna study beside the main one."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FixedTrial, TrialState, create_trial

from search.anchors import best_sums, check_reachable, representatives, table_of, uniform, within, within_limits
from search.learned import learn, look_ahead
from search.mending import Mending, usual
from search.options import combined, logarithms
from search.progress import track
from search.shares import SCORING
from search.storage import DRAFT, WORKER, accompanied, params_of, worker
from search.trial import PLAN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.bench import Bench
    from search.clock import Clock
    from search.options import Options
    from spaces import Plan, Step

ONE_SHOT = "one_shot_loss"
FEWEST, MOST, PER_TRIAL = 100, 1000, 12  # one-shot plans, and how many for each that will be trained
SEEDS = 1 / 3  # share of the plans that come straight from the table
TABLE = 0.25  # share of the time that the table may take
LOOK = 0.05  # share of the time for measuring some of the plans that the table makes best
SCORED = 0.1  # share of the time that is for one-shot scores, however long the costs were learned
MUTANTS = 48  # changed plans of which the most promising is scored
TRIES = 20  # times that many, of which none is new, and the space is used up
MATED = 0.3  # share of the choices that a plan takes from its mate
PLAUSIBLE = 0.5  # of the largest loss in the draft, at which a network answers as if it had seen nothing
LOST = 1e9  # the loss of a network whose answers are not finite
MENDED = "mended"  # attribute of a trial of the draft: what a few steps of training left of its one-shot loss
LEAST = 0.01  # nats; below it one loss is like another


@dataclass(frozen=True, slots=True)
class DraftStart:
    """Start with the best of a draft: plans that were searched by their loss before any training.

    A table of single changes, the best sums of it, then an evolution of plans scored in one shot: built, BatchNorm
    statistics re-estimated, compared with the teacher. Where layers can be left out, some of those that would lead are
    trained for a few steps, and the losses of all are told from that (`Mending`). The plans are trials of an Optuna
    study of their own, `<name>-draft`, whose values are the loss and the costs. A cost that cannot be foreseen, such as
    latency, is learned before from networks that are measured on this machine, the last of them plans that the table
    makes best. Where nothing can be told, or the table would take too long, the study starts with the plans of
    `UniformStart`.

    Parameters
    ----------
    plans
        How many to train first, spread over the costs.
    scored
        One-shot plans; by default 12 for each trial of the budget, from 100 to 1000.
    share
        Of the budget's time, by whose end the draft must be done, where learning costs left a tenth of the time for it.
    seconds
        CPU time that the table may take, and what is to be learned as much again; at most a quarter of the budget's.
    """

    plans: int = 8
    scored: int | None = None
    share: float = 0.35
    seconds: float = 120.0

    def __call__(self, bench: Bench, study: Study, clock: Clock) -> list[dict[str, float]]:
        """Return the parameters of each plan, the largest network first."""
        reachable = check_reachable(bench)
        learn(bench, min(self.seconds, TABLE * clock.total))
        known = bench.foresight.foreseeable
        wanted = [objective.name for objective in bench.spec.objectives if objective.name in known]
        table = table_of(bench, study, min(self.seconds, TABLE * clock.total)) if wanted else None
        if table is None:
            return uniform(bench, reachable)
        seconds = min(self.seconds, LOOK * clock.total)
        look_ahead(study, bench, lambda count: best_sums(bench, table, wanted, count), seconds)
        draft = Draft(bench, table, study, wanted)
        aim = self.scored or self._aim(clock)
        until = max(self.share, clock.spent + SCORED)
        with track("scoring plans in one shot") as told:
            while len(draft) < aim and (clock.spent < until or len(draft) < self.plans) and draft.step(aim):
                told(max(len(draft) / aim, clock.spent / until))
        return draft.best(self.plans) if len(draft) else uniform(bench, reachable)

    def _aim(self, clock: Clock) -> int:
        trials = clock.budget.trials
        return MOST if trials is None else min(MOST, max(FEWEST, PER_TRIAL * trials))


def plausible(losses: np.ndarray) -> np.ndarray:
    """Return which plans can be trained to something worth having, as far as their one-shot losses tell."""
    finite = losses[losses < LOST]
    if not len(finite):
        return np.ones(len(losses), dtype=bool)
    good: np.ndarray = losses <= max(PLAUSIBLE * finite.max(), finite.min())
    return good


def draft_of(study: Study) -> Study | None:
    """Return the draft of a study, or None where there is none."""
    storage, name = study._storage, study.study_name + DRAFT  # noqa: SLF001 - Optuna's samplers do so too
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def choices_in(trial: FrozenTrial, names: Iterable[str]) -> tuple[Any, ...]:
    """Return the values of the draft's parameters in a trial of the study, be it one that still waits."""
    params = params_of(trial)
    return tuple(params.get(name) for name in names)


def metric_names(study: Study) -> list[str]:
    """Return the names of a study's objectives, none where it has no names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return list(study.metric_names or ())


class Draft:
    """Plans as rows of choices from a table, with their losses and costs; all of it is in the storage.

    Parameters
    ----------
    bench, table
        The study and its single changes.
    study
        The main study, in whose storage the draft lies.
    wanted
        Names of the costs to spread over.
    """

    def __init__(self, bench: Bench, table: Options, study: Study, wanted: list[str]) -> None:
        self._bench, self._table, self._score = bench, table, bench.score
        self._wanted = wanted
        self._costs = [bench.foresight.foreseeable[name] for name in wanted]
        self._study = _create(study, [ONE_SHOT, *wanted])
        self._mending = Mending(bench) if table.outline.left_out.any() and usual(bench) else None
        self._places = [{value: at for at, value in enumerate(values)} for values in table.values]
        self._sizes = np.array([len(values) for values in table.values])
        self._chosen = np.zeros((0, len(self._sizes)), dtype=int)
        self._losses, self._logs = np.zeros(0), np.zeros((0, len(wanted)))
        self._best = np.zeros(0, dtype=int)
        self._seen: set[bytes] = set()
        self._plans: set[tuple[Step, ...]] = set()
        self._read = self._me = 0
        self._look()
        seeds = within_limits(bench, table, wanted)
        self._seeds = list(np.random.default_rng(bench.spec.seed).permutation(seeds))

    def __len__(self) -> int:
        """Return how many plans are scored."""
        return len(self._losses)

    def step(self, aim: int) -> bool:
        """Score one more plan: a seed from the table, as long as they are few, or a changed plan of the front.

        Return whether there was one: a small space is used up at some point.
        """
        found = self._new(aim)
        if found is None:
            return False
        row, own, trial, plan = found
        with self._bench.shares.spending(SCORING):
            loss = self._score(self._bench.sketch(plan))
        costs = self._cost(row[None])[0]
        attributes: dict[str, float | str] = {WORKER: worker(), PLAN: plan.words()}
        if self._mending is not None and np.isfinite(loss):
            before = max(LEAST, loss)
            loss = before * self._mending.told(self._left_out(row), before)
            if self._mending.due(len(self)) and not self._beaten(loss, logarithms(costs)):
                after = self._mending(plan)
                loss = max(LEAST, after) if np.isfinite(after) else before
                attributes[MENDED] = loss / before
        self._study.add_trial(
            create_trial(
                params=own,
                distributions={name: trial.distributions[name] for name in own},
                values=[loss if np.isfinite(loss) else LOST, *costs],
                user_attrs=attributes,
            )
        )
        self._look()
        return True

    def _new(self, aim: int) -> tuple[np.ndarray, dict[str, float], FixedTrial, Plan] | None:
        """Return a row that no other equals in what it does, its parameters, a trial of them and the plan, if any."""
        for _ in range(TRIES):
            row = self._seed() if len(self) < SEEDS * aim else None
            row = self._mutant() if row is None else row
            if row is None:
                break
            own = self._table.params(row)
            trial = FixedTrial(own | self._bench.spec.space.recovery.usual())
            plan = self._bench.spec.space.suggest(trial, self._bench.anatomy)
            if plan.steps not in self._plans:
                return row, own, trial, plan
            self._seen.add(row.tobytes())
        return None

    def best(self, count: int) -> list[dict[str, float]]:
        """Return the parameters of the plans of least loss in bands of each cost, the largest network first.

        Of plans that lose next to nothing only the cheapest is worth a training: bands span what none dominates.
        """
        good = np.zeros(len(self), dtype=bool)
        good[self._front()] = True
        return representatives(self._bench, self._table, self._chosen, self._logs, self._losses, good, count)

    def _look(self) -> None:
        """Read what is new in the storage."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for trial in trials[self._read :]:
            row = np.array(
                [places[trial.params[name]] for name, places in zip(self._table.names, self._places, strict=True)]
            )
            self._seen.add(row.tobytes())
            self._plans.add(self._bench.plan(trial.params).steps)
            self._chosen = np.vstack([self._chosen, row])
            self._losses = np.append(self._losses, max(LEAST, trial.values[0]))
            self._logs = np.vstack([self._logs, logarithms(np.array(trial.values[1:]))])
            if self._mending is not None and MENDED in trial.user_attrs:
                ratio = trial.user_attrs[MENDED]
                self._mending.note(self._left_out(row), self._losses[-1] / ratio, ratio)
            self._place(len(self._losses) - 1)
        if any(accompanied(trial.user_attrs[WORKER]) for trial in trials[self._read :]):
            self._me = os.getpid()  # several workers must not think of the same plans
        self._read = len(trials)

    def _place(self, at: int) -> None:
        """Put a plan among those that no other dominates, if it is one of them."""
        values = np.column_stack([self._losses[self._best], self._logs[self._best]])
        mine = np.array([self._losses[at], *self._logs[at]])
        if not self._beaten(self._losses[at], self._logs[at]):
            self._best = np.append(self._best[~(mine <= values).all(1)], at)

    def _left_out(self, row: np.ndarray) -> float:
        return float(combined(self._table, row[None]).left_out[0])

    def _beaten(self, loss: float, logs: np.ndarray) -> bool:
        """Whether a plan is as good in all."""
        return bool(((self._losses[self._best] <= loss) & (self._logs[self._best] <= logs).all(1)).any())

    def _seed(self) -> np.ndarray | None:
        while self._seeds:
            row: np.ndarray = self._seeds.pop()
            if row.tobytes() not in self._seen:
                return row
        return None

    def _mutant(self) -> np.ndarray | None:
        """Return the changed plan of the front whose loss is expected farthest below that of its costs so far."""
        dice = np.random.default_rng((self._bench.spec.seed, len(self), self._me))
        front = self._front()
        for _ in range(TRIES if len(front) else 0):
            order = front[self._logs[front, dice.integers(len(self._wanted))].argsort()]
            at = dice.integers(len(order))
            parent = self._chosen[order[at]]
            shape = MUTANTS, len(parent)
            mates = order[np.clip(at + dice.integers(-3, 4, size=MUTANTS), 0, len(order) - 1)]
            swapped = dice.random(shape) < MATED * dice.integers(2, size=(MUTANTS, 1))
            moved = dice.random(shape).argsort(1).argsort(1) <= dice.poisson(1.0, size=(MUTANTS, 1))  # at least one
            steps = dice.choice([-2, -1, -1, 1, 1, 2], size=shape)
            rows = np.where(swapped, self._chosen[mates], parent) + moved * steps
            rows = np.clip(rows, 0, self._sizes - 1)
            rows = rows[[row.tobytes() not in self._seen for row in rows]]
            rows = rows[self._held(rows)] if len(rows) else rows
            if len(rows):
                return self._most_promising(rows, parent, float(self._losses[order[at]]))
        return None

    def _most_promising(self, rows: np.ndarray, parent: np.ndarray, loss: float) -> np.ndarray:
        expected = (
            np.log(loss) + np.log(self._table.sums(rows) + LEAST) - np.log(self._table.sums(parent[None]) + LEAST)
        )
        logs = logarithms(self._cost(rows))
        cheaper = (self._logs[None] <= logs[:, None] + 1e-9).all(2)
        level = np.where(cheaper, np.log(self._losses), np.log(self._losses.max())).min(1)
        best: np.ndarray = rows[(level - expected).argmax()]
        return best

    def _front(self) -> np.ndarray:
        """Return the plausible plans that no other dominates in loss and costs; those that are not dominate none."""
        front: np.ndarray = self._best[plausible(self._losses)[self._best]]
        return front

    def _held(self, rows: np.ndarray) -> np.ndarray:
        return within(self._bench, self._bench.foresight.of(combined(self._table, rows)))

    def _cost(self, rows: np.ndarray) -> np.ndarray:
        found = self._bench.foresight.of(combined(self._table, rows))
        return np.column_stack([found[name] for name in self._wanted])


def _create(study: Study, names: list[str]) -> Study:
    draft = optuna.create_study(
        storage=study._storage,  # noqa: SLF001 - Optuna's samplers do so too
        study_name=study.study_name + DRAFT,
        directions=["minimize"] * len(names),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        draft.set_metric_names(names)
    return draft
