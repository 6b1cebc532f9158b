"""Initial designs with the best sums of a sensitivity table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.evaluation.profiling import measure_promising
from search.proposals.seeds import best_sums, first_by_table, reachable_and_known, seeds_within_limits
from search.proposals.sensitivity_table import measured_table
from search.proposals.table_losses import TABLE_SHARE
from search.proposals.uniform_start import uniform_designs
from search.study.numbers import check_positive, check_settings

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock


@dataclass(frozen=True, slots=True)
class TableStart:
    """Start with the plans whose single changes have the smallest sum of measured losses.

    If no cost is known before training, start with the plans of `UniformStart`.

    Parameters
    ----------
    plans
        Number of plans, spread over the costs.
    """

    plans: int = 10

    def __post_init__(self) -> None:
        """Check the number."""
        check_settings(self)
        check_positive("plans", self.plans)

    def __call__(self, context: Context, study: Study, clock: BudgetClock) -> list[dict[str, float]]:
        """Return the parameters of each plan, in the order of training."""
        reachable, cost_names = reachable_and_known(context, clock)
        if not cost_names:
            return uniform_designs(context, reachable)
        table = measured_table(context, study, clock)
        seconds = clock.allowed(TABLE_SHARE)
        measure_promising(study, context, lambda count: best_sums(context, table, cost_names, count), seconds)
        seeds = seeds_within_limits(context, table, cost_names)
        return first_by_table(context, table, cost_names, seeds, self.plans) or uniform_designs(context, reachable)
