"""Initial designs that are the best of a draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.evaluation.profiling import fit_before_search, measure_promising
from search.proposals.draft import Draft
from search.proposals.lagrangian import best_sums
from search.proposals.limits import check_reachable
from search.proposals.sensitivity_table import measured_table
from search.proposals.uniform_start import uniform_designs
from search.study.console import track

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock

LEAST_SCORED, MOST_SCORED, SCORED_A_TRIAL = 100, 1000, 12  # plans of the draft, and how many for each trained trial
TABLE_SHARE = 0.25  # of the time: what the sensitivity table may take
PROMISING_SHARE = 0.05  # of the time: for measuring some of the plans that the table makes best
SCORED_SHARE = 0.1  # of the time: for the draft, however long the measurements before it took


@dataclass(frozen=True, slots=True)
class DraftStart:
    """Start with the best of a draft: plans that were searched by their loss before any training.

    A sensitivity table, the best sums of it, then an evolution of plans by their proxy loss: built, BatchNorm
    statistics re-estimated, compared with the teacher. Where layers can be left out, some of the plans that would lead
    are trained for a few steps, and the losses of all are predicted from that (`ShortTraining`). The plans are trials
    of an Optuna study of their own, `<name>-draft`, whose values are the loss and the costs. For a cost that no formula
    gives, such as latency, a model is fitted before, to networks that are measured on this machine, the last of them
    plans that the table makes best. Where no cost is known before training, or the table would take too long, the study
    starts with the plans of `UniformStart`.

    Parameters
    ----------
    plans
        How many to train first, spread over the costs.
    scored
        Plans in the draft; by default 12 for each trial of the budget, from 100 to 1000.
    share
        Of the budget's time, by whose end the draft must be done, where the measurements before left a tenth for it.
    seconds
        CPU time that the table may take, and the measurements as much again; at most a quarter of the budget's.
    """

    plans: int = 8
    scored: int | None = None
    share: float = 0.35
    seconds: float = 120.0

    def __call__(self, context: Context, study: Study, clock: BudgetClock) -> list[dict[str, float]]:
        """Return the parameters of each plan, the largest network first."""
        reachable = check_reachable(context)
        seconds = min(self.seconds, TABLE_SHARE * clock.total)
        fit_before_search(context, seconds)
        known = context.cost_model.formulas
        wanted = [objective.name for objective in context.spec.objectives if objective.name in known]
        table = measured_table(context, study, seconds) if wanted else None
        if table is None:
            return uniform_designs(context, reachable)
        seconds = min(self.seconds, PROMISING_SHARE * clock.total)
        measure_promising(study, context, lambda count: best_sums(context, table, wanted, count), seconds)
        draft = Draft(context, table, study, wanted)
        aim = self.scored or self._aim(clock)
        until = max(self.share, clock.spent + SCORED_SHARE)
        with track("scoring plans by their proxy loss") as progress:
            while len(draft) < aim and (clock.spent < until or len(draft) < self.plans) and draft.step(aim):
                progress(max(len(draft) / aim, clock.spent / until))
        return draft.best(self.plans) if len(draft) else uniform_designs(context, reachable)

    def _aim(self, clock: BudgetClock) -> int:
        trials = clock.budget.trials
        return MOST_SCORED if trials is None else min(MOST_SCORED, max(LEAST_SCORED, SCORED_A_TRIAL * trials))
