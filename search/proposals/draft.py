"""The draft: a separate Optuna study of hundreds of plans, scored by their loss before or after a short training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FixedTrial, TrialState, create_trial
from scipy.stats import spearmanr

from search.evaluation.failing_kinds import FailingKinds, choices_of
from search.evaluation.proxy_loss import PROXY_INPUTS
from search.evaluation.trial import key_of
from search.proposals.draft_records import MIN_LOSS, create_draft, table_ranks_words
from search.proposals.limits import meet_limits
from search.proposals.seeds import DOUBTFUL_LOSS, DOUBTFUL_SHARE, first_trainings, seeds_within_limits
from search.proposals.sensitivity_table import safe_log
from search.proposals.short_training import ShortTraining, rate_is_known
from search.proposals.table_losses import LARGEST_LOSS, TIMED_PLANS, Allowance, proxy_loss_of
from search.study.attributes import known_name
from search.study.budget_clock import Stopwatch
from search.study.console import console
from search.study.cpu_profile import SCORING
from search.study.failed_plans import FailedPlans
from search.study.records import INPUTS, PLAN, PROXY_LOSS, REASON, SHORT_TRAINING, TABLE_RANKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study

    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable
    from spaces import Plan, Step

SEED_SHARE = 1 / 3  # share of the draft's plans that come directly from the sensitivity table (chosen)
TRAINED_SHARE = 1 / 2  # share of the draft's time that short trainings may take (chosen)
MUTANTS = 48  # mutated plans that are generated together; only the most promising one is scored (chosen)
ATTEMPTS = 20  # failed attempts to find a new plan, after which the space counts as exhausted (chosen)
MIN_RANKED = 20  # scored plans of similar cost, among which the sums of the table are compared with losses (chosen)
CROSSOVER_SHARE = 0.3  # share of its parameters that a plan takes from its mate, on average, if it takes any (chosen)


class Draft:
    """Plans with their losses and costs, each plan a row of choices from the sensitivity table.

    All of it is kept in the storage.

    Parameters
    ----------
    context, table
        The study and its sensitivity table.
    study
        The main study, in whose storage the draft is kept.
    cost_names
        Names of the costs over which the plans are spread.
    allowance
        What the draft may take; it decides, once per study, on how many inputs each plan is scored.
    wanted
        Number of plans that are to be scored within the allowance, at least.

    Attributes
    ----------
    seeds
        Choices from the table with the best sums (`seeds_within_limits`); they are scored first.
    """

    def __init__(
        self,
        context: Context,
        table: SensitivityTable,
        study: Study,
        cost_names: list[str],
        allowance: Allowance,
        wanted: int,
    ) -> None:
        self._context, self._table, self._cost_names = context, table, cost_names
        self._study = create_draft(study, [PROXY_LOSS, *cost_names])
        trains = context.spec.recipe.epochs > 0 and table.architectures.left_out.any() and rate_is_known(context)
        self._choice_of = [{value: choice for choice, value in enumerate(values)} for values in table.values]
        self._choice_counts = np.array([len(values) for values in table.values])
        self._rows = np.zeros((0, len(self._choice_counts)), dtype=int)
        self._losses, self._log_costs = np.zeros(0), np.zeros((0, len(cost_names)))
        self._nondominated = np.zeros(0, dtype=int)
        self._seen_rows: set[bytes] = set()
        self._seen_plans: set[tuple[Step, ...]] = set()
        self._own_plans: dict[bytes, tuple[Step, ...]] = {}  # added by this process and not yet read from the storage
        self._trials_read = 0
        self.failed = FailedPlans("the draft")
        self._failing = FailingKinds("the draft")
        self.seeds = seeds_within_limits(context, table, cost_names)
        self._waiting_seeds = list(self.seeds[::-1])
        with context.workers.turn("number of inputs of the draft"):
            if INPUTS not in self._study.user_attrs:
                plans = [context.plan(table.params(row)) for row in self._waiting_seeds[: -TIMED_PLANS - 1 : -1]]
                self._study.set_user_attr(INPUTS, allowance.inputs(context, plans, wanted) if plans else PROXY_INPUTS)
        self._trainings = Stopwatch(TRAINED_SHARE * allowance.seconds)
        self._inputs: int = self._study.user_attrs[INPUTS]
        self._short_training = ShortTraining(context, self._inputs) if trains else None
        self._read_new()

    def __len__(self) -> int:
        """Return the number of scored plans."""
        return len(self._losses)

    def step(self, target: int) -> bool:
        """Score one more plan: a seed from the table while the draft is small, then a mutated plan of the front.

        Parameters
        ----------
        target
            Number of plans that the draft is to reach.

        Returns
        -------
        bool
            False if no new plan was found, which happens when a small space is exhausted, or if too many failed.
        """
        if hopeless := self._failing.hopeless:
            console.print(f"{hopeless}; it ends early")
            return False
        found = self._next_plan(target)
        if found is None:
            return False
        row, params, trial, plan = found
        with self._context.workers.ticket(f"score {key_of(plan)}") as ticket:
            ahead = ticket.ahead()
            self._read_new()  # another worker may have scored the plan just before
            if ahead or plan.steps in self._seen_plans:
                self._seen_rows.add(row.tobytes())
            else:
                self._score(row, params, trial, plan)
        return True

    def _score(self, row: np.ndarray, params: dict[str, float], trial: FixedTrial, plan: Plan) -> None:
        """Add a plan with its loss and its costs to the draft."""
        attributes: dict[str, float | str | None] = {PLAN: plan.words()}
        with self._context.cpu_profile.charge(SCORING):
            try:
                loss = proxy_loss_of(self._context, plan, self._inputs)
            except Exception as error:  # noqa: BLE001 - a plan may fail in any way
                loss, attributes[REASON] = LARGEST_LOSS, self.failed.note(plan.words(), error)
                self._failing.failed(self._choices_of(plan), str(attributes[REASON]))
            else:
                self._failing.worked(self._choices_of(plan))
        architectures = self._table.combine(row[None])
        costs = self._stack_costs(self._context.cost_model.of(architectures))[0]
        if self._short_training is not None and loss < LARGEST_LOSS:
            untrained = max(MIN_LOSS, loss)
            left_out = float(architectures.left_out[0])
            loss = untrained * self._short_training.predict(left_out, untrained)
            due = self._short_training.due(len(self)) and self._trainings.fits_one_more
            if due and not self._is_dominated(loss, safe_log(costs)):
                with self._trainings.lap():
                    trained = self._short_training(plan, self._trainings.seconds)
                loss = max(MIN_LOSS, trained) if np.isfinite(trained) else untrained
                attributes[SHORT_TRAINING] = loss / untrained if np.isfinite(trained) else None
        self._study.add_trial(
            create_trial(
                params=params,
                distributions={name: trial.distributions[name] for name in params},
                values=[loss, *costs],
                user_attrs=attributes,
            )
        )
        self._own_plans[row.tobytes()] = plan.steps
        self._read_new()

    def _choices_of(self, plan: Plan) -> dict[str, Any]:
        return choices_of(plan, self._context.subject.anatomy)

    def _next_plan(self, target: int) -> tuple[np.ndarray, dict[str, float], FixedTrial, Plan] | None:
        """Return a row whose steps are new, with its parameters, a trial of them and its plan; None if none is found.

        Different rows can give the same steps; such a row is skipped.
        """
        for _ in range(ATTEMPTS):
            row = self._next_seed() if len(self) < SEED_SHARE * target else None
            row = self._next_mutant() if row is None else row
            if row is None:
                break
            params = self._table.params(row)
            trial = FixedTrial(params | self._context.spec.space.recovery.usual())
            plan = self._context.spec.space.suggest(trial, self._context.subject.anatomy)
            if plan.steps not in self._seen_plans and not self._failing.reason_against(self._choices_of(plan)):
                return row, params, trial, plan
            self._seen_rows.add(row.tobytes())
        return None

    def best(self, count: int) -> list[dict[str, float]]:
        """Return the parameters of about `count` plans to train, in this order (see `first_trainings`).

        Only the front is considered, and the bands span the costs of the front: of all plans that lose almost nothing,
        only the cheapest is worth training.
        """
        front = self._nondominated
        if not len(front):
            return []
        rows, costs, losses = self._rows[front], self._log_costs[front], self._losses[front]
        return first_trainings(self._context, self._table, rows, costs, losses, count)

    def words(self) -> str:
        """Describe how many plans were scored, and how well the sums of the table rank their losses.

        The latter is kept for reports.
        """
        failed = f", of which {self.failed.reasons.total()} failed" if self.failed.reasons else ""
        found = f"{len(self)} plans were scored on {self._inputs} inputs each{failed}"
        ranks = self._table_ranks()
        if ranks is None:
            return found
        self._study.set_user_attr(TABLE_RANKS, ranks)
        return f"{found}; {table_ranks_words(ranks)}"

    def _table_ranks(self) -> float | None:
        """Return the rank correlation of the table's sums and the losses of plans of similar cost, None if unknown."""
        scored = self._losses < LARGEST_LOSS
        if scored.sum() < MIN_RANKED:
            return None
        sums, costs = self._table.sums(self._rows[scored]), self._log_costs[scored, 0]
        bands = np.array_split(costs.argsort(), scored.sum() // MIN_RANKED)
        pairs = [(sums[band], self._losses[scored][band]) for band in bands]
        ranks = [spearmanr(one, other)[0] for one, other in pairs if np.ptp(one) and np.ptp(other)]
        return float(np.mean(ranks)) if ranks else None

    def _read_new(self) -> None:
        """Read the draft's new trials from the storage."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for trial in trials[self._trials_read :]:
            row = np.array(
                [
                    choice_of[trial.params[name]]
                    for name, choice_of in zip(self._table.names, self._choice_of, strict=True)
                ]
            )
            self._seen_rows.add(row.tobytes())
            steps = self._own_plans.pop(row.tobytes(), None) or self._context.plan(trial.params).steps
            self._seen_plans.add(steps)
            self._rows = np.vstack([self._rows, row])
            self._losses = np.append(self._losses, max(MIN_LOSS, trial.values[0]))
            self._log_costs = np.vstack([self._log_costs, safe_log(np.array(trial.values[1:]))])
            if self._short_training is not None and (name := known_name(trial, SHORT_TRAINING)):
                ratio = trial.user_attrs[name]
                left_out = float(self._table.combine(row[None]).left_out[0])
                self._short_training.note(left_out, self._losses[-1] / (ratio or 1.0), ratio)
            self._update_front(len(self._losses) - 1)
        self._trials_read = len(trials)

    def _update_front(self, index: int) -> None:
        """Add a plan to the nondominated plans, if none of them dominates it, and remove those that it dominates.

        A plan that failed, or whose outputs are not finite, is not worth a training, however little it costs.
        """
        if self._losses[index] >= LARGEST_LOSS:
            return
        values = np.column_stack([self._losses[self._nondominated], self._log_costs[self._nondominated]])
        new = np.array([self._losses[index], *self._log_costs[index]])
        if not self._is_dominated(self._losses[index], self._log_costs[index]):
            self._nondominated = np.append(self._nondominated[~(new <= values).all(1)], index)

    def _is_dominated(self, loss: float, log_costs: np.ndarray) -> bool:
        """Whether a scored plan is at least as good in the loss and every cost."""
        front = self._nondominated
        return bool(((self._losses[front] <= loss) & (self._log_costs[front] <= log_costs).all(1)).any())

    def _next_seed(self) -> np.ndarray | None:
        while self._waiting_seeds:
            row: np.ndarray = self._waiting_seeds.pop()
            if row.tobytes() not in self._seen_rows:
                return row
        return None

    def _next_mutant(self) -> np.ndarray | None:
        """Return the mutated plan whose expected loss is farthest below that of scored plans at its costs.

        A parent on the front is mutated and crossed with a plan that is near it on the front.
        """
        rng = np.random.default_rng((self._context.spec.seed, len(self), 0))
        front = self._nondominated
        for _ in range(ATTEMPTS if len(front) else 0):
            doubtful = self._losses[front] > DOUBTFUL_LOSS
            some = front[doubtful == (rng.integers(DOUBTFUL_SHARE) == 0)]
            order = front if not len(some) else some
            order = order[self._log_costs[order, rng.integers(len(self._cost_names))].argsort()]
            index = rng.integers(len(order))
            parent = self._rows[order[index]]
            shape = MUTANTS, len(parent)
            mates = order[np.clip(index + rng.integers(-3, 4, size=MUTANTS), 0, len(order) - 1)]
            swapped = rng.random(shape) < CROSSOVER_SHARE * rng.integers(2, size=(MUTANTS, 1))
            moved = rng.random(shape).argsort(1).argsort(1) <= rng.poisson(1.0, size=(MUTANTS, 1))  # at least one
            moves = rng.choice([-2, -1, -1, 1, 1, 2], size=shape)
            rows = np.where(swapped, self._rows[mates], parent) + moved * moves
            rows = np.clip(rows, 0, self._choice_counts - 1)
            rows = rows[[row.tobytes() not in self._seen_rows for row in rows]]
            costs = self._context.cost_model.of(self._table.combine(rows)) if len(rows) else {}
            feasible = meet_limits(self._context, costs) if costs else np.zeros(0, dtype=bool)
            if feasible.any():
                log_costs = safe_log(self._stack_costs(costs)[feasible])
                return self._most_promising(rows[feasible], log_costs, parent, float(self._losses[order[index]]))
        return None

    def _most_promising(self, rows: np.ndarray, log_costs: np.ndarray, parent: np.ndarray, loss: float) -> np.ndarray:
        """Return the row with the largest difference between the best loss at its costs so far and its expected loss.

        The expected loss is the parent's, scaled by the ratio of the sums in the sensitivity table.
        """
        log_sum_parent, log_sums = (np.log(self._table.sums(chosen) + MIN_LOSS) for chosen in (parent[None], rows))
        expected = np.log(loss) + log_sums - log_sum_parent
        not_costlier = (self._log_costs[None] <= log_costs[:, None] + 1e-9).all(2)
        best_so_far = np.where(not_costlier, np.log(self._losses), np.log(self._losses.max())).min(1)
        best: np.ndarray = rows[(best_so_far - expected).argmax()]
        return best

    def _stack_costs(self, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.column_stack([costs[name] for name in self._cost_names])
