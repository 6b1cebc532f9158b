"""Initial designs that are best in the sum of a sensitivity table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.evaluation.profiling import fit_before_search, measure_promising
from search.proposals.lagrangian import best_sums
from search.proposals.limits import check_reachable
from search.proposals.sensitivity_table import measured_table
from search.proposals.uniform_start import uniform_designs

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock


@dataclass(frozen=True, slots=True)
class TableStart:
    """Start with the plans that are best in the sum of what each single change was measured to lose.

    Where no cost is known before training, or the table would take too long, with those of `UniformStart`.

    Parameters
    ----------
    plans
        How many, spread over the costs.
    seconds
        CPU time that the table may take; measurements before and after it may take as much again, each.
    """

    plans: int = 10
    seconds: float = 120.0

    def __call__(self, context: Context, study: Study, clock: BudgetClock) -> list[dict[str, float]]:  # noqa: ARG002
        """Return the parameters of each plan, the largest network first."""
        reachable = check_reachable(context)
        fit_before_search(context, self.seconds)
        known = context.cost_model.formulas
        wanted = [objective.name for objective in context.spec.objectives if objective.name in known]
        table = measured_table(context, study, self.seconds) if wanted else None
        if table is None:
            return uniform_designs(context, reachable)
        measure_promising(study, context, lambda count: best_sums(context, table, wanted, count), self.seconds)
        return best_sums(context, table, wanted, self.plans) or uniform_designs(context, reachable)
