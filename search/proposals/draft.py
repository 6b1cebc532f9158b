"""The draft: hundreds of plans by their loss before training or after a few steps, in an Optuna study of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import FixedTrial, TrialState, create_trial

from search.proposals.draft_records import LEAST_LOSS, NOT_FINITE, create_draft, plausible
from search.proposals.lagrangian import representatives, search_within_limits
from search.proposals.limits import hold
from search.proposals.sensitivity_table import logarithms
from search.proposals.short_training import ShortTraining, rate_is_known
from search.study.cpu_profile import SCORING
from search.study.queue import accompanied, worker
from search.study.records import PLAN, PROXY_LOSS, SHORT_TRAINING, WORKER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study

    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable
    from spaces import Plan, Step

SEED_SHARE = 1 / 3  # of the plans, which come straight from the table
MUTANTS = 48  # changed plans of which the most promising is scored
TRIES = 20  # times that many, of which none is new, and the space is used up
MATE_SHARE = 0.3  # of the choices that a plan takes from its mate


class Draft:
    """Plans as rows of choices from a table, with their losses and costs; all of it is in the storage.

    Parameters
    ----------
    context, table
        The study and its single changes.
    study
        The main study, in whose storage the draft lies.
    wanted
        Names of the costs to spread over.
    """

    def __init__(self, context: Context, table: SensitivityTable, study: Study, wanted: list[str]) -> None:
        self._context, self._table, self._proxy_loss = context, table, context.proxy_loss
        self._wanted = wanted
        self._study = create_draft(study, [PROXY_LOSS, *wanted])
        trains = table.architectures.left_out.any() and rate_is_known(context)
        self._short_training = ShortTraining(context) if trains else None
        self._places = [{value: at for at, value in enumerate(values)} for values in table.values]
        self._sizes = np.array([len(values) for values in table.values])
        self._chosen = np.zeros((0, len(self._sizes)), dtype=int)
        self._losses, self._logs = np.zeros(0), np.zeros((0, len(wanted)))
        self._best = np.zeros(0, dtype=int)
        self._seen: set[bytes] = set()
        self._plans: set[tuple[Step, ...]] = set()
        self._planned: dict[bytes, tuple[Step, ...]] = {}  # by this process, not read back yet
        self._read = self._me = 0
        self._read_new()
        seeds = search_within_limits(context, table, wanted)
        self._seeds = list(np.random.default_rng(context.spec.seed).permutation(seeds))

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
        with self._context.cpu_profile.charge(SCORING):
            loss = self._proxy_loss(self._context.subject.build_roughly(plan))
        architectures = self._table.combine(row[None])
        costs = self._wanted_costs(self._context.cost_model.of(architectures))[0]
        attributes: dict[str, float | str] = {WORKER: worker(), PLAN: plan.words()}
        if self._short_training is not None and np.isfinite(loss):
            before = max(LEAST_LOSS, loss)
            left_out = float(architectures.left_out[0])
            loss = before * self._short_training.predict(left_out, before)
            if self._short_training.due(len(self)) and not self._beaten(loss, logarithms(costs)):
                after = self._short_training(plan)
                loss = max(LEAST_LOSS, after) if np.isfinite(after) else before
                attributes[SHORT_TRAINING] = loss / before
        self._study.add_trial(
            create_trial(
                params=own,
                distributions={name: trial.distributions[name] for name in own},
                values=[loss if np.isfinite(loss) else NOT_FINITE, *costs],
                user_attrs=attributes,
            )
        )
        self._planned[row.tobytes()] = plan.steps
        self._read_new()
        return True

    def _new(self, aim: int) -> tuple[np.ndarray, dict[str, float], FixedTrial, Plan] | None:
        """Return a row that no other equals in what it does, its parameters, a trial of them and the plan, if any."""
        for _ in range(TRIES):
            row = self._seed() if len(self) < SEED_SHARE * aim else None
            row = self._mutant() if row is None else row
            if row is None:
                break
            own = self._table.params(row)
            trial = FixedTrial(own | self._context.spec.space.recovery.usual())
            plan = self._context.spec.space.suggest(trial, self._context.subject.anatomy)
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
        return representatives(self._context, self._table, self._chosen, self._logs, self._losses, good, count)

    def _read_new(self) -> None:
        """Read what is new in the storage."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for trial in trials[self._read :]:
            row = np.array(
                [places[trial.params[name]] for name, places in zip(self._table.names, self._places, strict=True)]
            )
            self._seen.add(row.tobytes())
            steps = self._planned.pop(row.tobytes(), None) or self._context.plan(trial.params).steps
            self._plans.add(steps)
            self._chosen = np.vstack([self._chosen, row])
            self._losses = np.append(self._losses, max(LEAST_LOSS, trial.values[0]))
            self._logs = np.vstack([self._logs, logarithms(np.array(trial.values[1:]))])
            if self._short_training is not None and SHORT_TRAINING in trial.user_attrs:
                ratio = trial.user_attrs[SHORT_TRAINING]
                left_out = float(self._table.combine(row[None]).left_out[0])
                self._short_training.note(left_out, self._losses[-1] / ratio, ratio)
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
        dice = np.random.default_rng((self._context.spec.seed, len(self), self._me))
        front = self._front()
        for _ in range(TRIES if len(front) else 0):
            order = front[self._logs[front, dice.integers(len(self._wanted))].argsort()]
            at = dice.integers(len(order))
            parent = self._chosen[order[at]]
            shape = MUTANTS, len(parent)
            mates = order[np.clip(at + dice.integers(-3, 4, size=MUTANTS), 0, len(order) - 1)]
            swapped = dice.random(shape) < MATE_SHARE * dice.integers(2, size=(MUTANTS, 1))
            moved = dice.random(shape).argsort(1).argsort(1) <= dice.poisson(1.0, size=(MUTANTS, 1))  # at least one
            steps = dice.choice([-2, -1, -1, 1, 1, 2], size=shape)
            rows = np.where(swapped, self._chosen[mates], parent) + moved * steps
            rows = np.clip(rows, 0, self._sizes - 1)
            rows = rows[[row.tobytes() not in self._seen for row in rows]]
            costs = self._context.cost_model.of(self._table.combine(rows)) if len(rows) else {}
            held = hold(self._context, costs) if costs else np.zeros(0, dtype=bool)
            if held.any():
                logs = logarithms(self._wanted_costs(costs)[held])
                return self._most_promising(rows[held], logs, parent, float(self._losses[order[at]]))
        return None

    def _most_promising(self, rows: np.ndarray, logs: np.ndarray, parent: np.ndarray, loss: float) -> np.ndarray:
        before, after = (np.log(self._table.sums(chosen) + LEAST_LOSS) for chosen in (parent[None], rows))
        expected = np.log(loss) + after - before
        cheaper = (self._logs[None] <= logs[:, None] + 1e-9).all(2)
        level = np.where(cheaper, np.log(self._losses), np.log(self._losses.max())).min(1)
        best: np.ndarray = rows[(level - expected).argmax()]
        return best

    def _front(self) -> np.ndarray:
        """Return the plausible plans that no other dominates in loss and costs; those that are not dominate none."""
        front: np.ndarray = self._best[plausible(self._losses)[self._best]]
        return front

    def _wanted_costs(self, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.column_stack([costs[name] for name in self._wanted])
