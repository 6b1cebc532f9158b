"""Plans from the sensitivity table that meet the limits: the seeds of the draft, and a few that span the costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from search.evaluation.profiling import fit_before_search
from search.proposals.band_search import Evaluation, band_search
from search.proposals.limits import (
    check_reachable,
    excess_over_limits,
    limits_before_training,
    limits_need_models,
)
from search.proposals.sensitivity_table import safe_log
from search.proposals.table_losses import TABLE_SHARE, middles
from search.study.console import console

if TYPE_CHECKING:
    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable
    from search.study.budget_clock import BudgetClock
    from search.study.spec import StudySpec


def reachable_and_known(
    context: Context, clock: BudgetClock
) -> tuple[dict[tuple[float, ...], dict[str, float]], list[str]]:
    """Fit models of the costs without a formula; return the result of `check_reachable`, and `known_costs`.

    Limits that need no model are checked first, so that an error comes before anything is measured.
    """
    reachable = None if limits_need_models(context) else check_reachable(context)
    fit_before_search(context, TABLE_SHARE * clock.total)
    return check_reachable(context) if reachable is None else reachable, known_costs(context)


def known_costs(context: Context) -> list[str]:
    """Return the names of the minimized objectives that are known before training."""
    formulas = context.cost_model.formulas
    known = [objective for objective in context.spec.objectives if objective.name in formulas]
    for objective in known:
        if objective.direction == "maximize":
            console.print(f"{objective.name} is a cost that is maximized, so only the sampler looks at it")
    return [objective.name for objective in known if objective.direction == "minimize"]


def seeds_within_limits(context: Context, table: SensitivityTable, cost_names: list[str]) -> np.ndarray:
    """Return the choices from the table with the best sums of losses at every cost, within the limits.

    Any number of first rows spans the costs. A plan that is cheap in one cost may be expensive in another, so limited
    costs are searched like the wanted ones. If no plan meets the limits by the margin of the cost models, the margin
    is left out.
    """
    formulas = context.cost_model.formulas
    limited = [limit.objective.name for limit in limits_before_training(context)]
    names = [name for name in dict.fromkeys([*cost_names, *limited]) if name in formulas]

    def search(margin: float) -> np.ndarray:
        def evaluate(chosen: np.ndarray) -> Evaluation:
            costs = context.cost_model.of(table.combine(chosen))
            return Evaluation(
                np.column_stack([costs[name] for name in names]), excess_over_limits(context, costs, margin)
            )

        return band_search(table.losses, table.axes, evaluate, context.spec.seed)

    found = search(margin=1.0)
    if not len(found) and context.cost_model.models:
        console.print("no plan meets the limits by the margin of the predictions; seeds meet them without it")
        found = search(margin=0.0)
    return found


def best_sums(context: Context, table: SensitivityTable, cost_names: list[str], count: int) -> list[dict[str, float]]:
    """Return the parameters of about `count` plans with the best sums in the table, spread over the costs.

    The list is empty if no plan of the table meets the limits.
    """
    chosen = seeds_within_limits(context, table, cost_names)
    if not len(chosen):
        return []
    costs = context.cost_model.of(table.combine(chosen))
    logs = safe_log(np.column_stack([costs[name] for name in cost_names]))
    return representatives(context, table, chosen, logs, table.sums(chosen), count)


def in_order_of_training(designs: list[dict[str, float]], spec: StudySpec) -> list[dict[str, float]]:
    """Return initial designs, given from the largest network on, in an order whose first ones span the range.

    The middle one comes first, then always the middle of a widest gap, the ends last, since there may be time for only
    a few. If a limit is on what training gives, such as "lose at most 1 point", the largest one comes before: it is the
    most likely to meet the limit.
    """
    largest_first = [0] if designs and any(not limit.objective.is_cost for limit in spec.limits) else []
    return [designs[at] for at in [*largest_first, *middles(len(largest_first) - 1, len(designs))]]


def representatives(
    context: Context, table: SensitivityTable, chosen: np.ndarray, logs_NC: np.ndarray, losses: np.ndarray, count: int
) -> list[dict[str, float]]:
    """Return the parameters of the plans with the smallest loss in bands of each cost, the largest network first.

    The size of a network is the mean of the logarithms of its costs.

    Parameters
    ----------
    context, table
        The study and its sensitivity table.
    chosen
        Choices from the table, one row per plan, shape (N, parameters).
    logs_NC, losses
        For each plan, the logarithm of each cost, and the loss.
    count
        Approximate number of plans.
    """
    bands = -(-count // logs_NC.shape[1])
    picked = dict.fromkeys(row for logs in logs_NC.T for row in _spread(logs, losses, bands))
    usual = context.spec.space.recovery.usual()
    return [table.params(chosen[row]) | usual for row in sorted(picked, key=lambda row: -logs_NC[row].sum())]


def _spread(log_costs: np.ndarray, losses: np.ndarray, count: int) -> list[int]:
    """Return, for each of `count` bands of equal width, the row with the smallest loss; skip empty bands."""
    bands = np.linspace(log_costs.min(), log_costs.max(), count + 1)[1:-1]
    band = np.digitize(log_costs, bands)
    order = np.lexsort((log_costs, losses, band))
    first = np.unique(band[order], return_index=True)[1]
    return [int(row) for row in order[first]]
