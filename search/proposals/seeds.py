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
    from collections.abc import Callable

    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable
    from search.study.budget_clock import BudgetClock

DOUBTFUL_LOSS = 0.5  # proxy loss above which answers are closer to the mean answer than to the teacher's
DOUBTFUL_SHARE = 4  # one of this many initial designs, at most, has such a loss (chosen)


def reachable_and_known(
    context: Context, clock: BudgetClock
) -> tuple[dict[tuple[float, ...], dict[str, float]], list[str]]:
    """Fit models of the costs without a formula; return the result of `check_reachable`, and `known_costs`.

    Limits that need no model are checked first, so that an error comes before anything is measured.
    """
    reachable = None if limits_need_models(context) else check_reachable(context)
    fit_before_search(context, clock.allowed(TABLE_SHARE))
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
    """Return `seeds_by_margin` with a margin of 1; if no plan meets the limits by it, it is left out."""
    found = seeds_by_margin(context, table, cost_names, 1.0)
    if not len(found) and context.cost_model.models:
        console.print("no plan meets the limits if predictions are as wrong as usual; the first plans meet them if not")
        found = seeds_by_margin(context, table, cost_names, 0.0)
    return found


def seeds_by_margin(context: Context, table: SensitivityTable, cost_names: list[str], margin: float) -> np.ndarray:
    """Return the choices from the table with the best sums of losses at every cost, within the limits.

    First come the plans that compress all layers equally by one axis, such as one precision for all, unless another one
    is at least as good in the loss and in every cost: where a layer costs less among layers like it, such as without
    conversions between integers and floating point, changes of few layers do not lead there. After them, any number of
    first rows spans the costs. A plan that is cheap in one cost may be expensive in another, so limited costs are
    searched like the wanted ones. The margin says by how many times their error predictions are raised.
    """
    formulas = context.cost_model.formulas
    limited = [limit.objective.name for limit in limits_before_training(context)]
    names = [name for name in dict.fromkeys([*cost_names, *limited]) if name in formulas]

    def evaluate(chosen: np.ndarray) -> Evaluation:
        costs = context.cost_model.of(table.combine(chosen))
        return Evaluation(np.column_stack([costs[name] for name in names]), excess_over_limits(context, costs, margin))

    equal = _equal_strengths(context, table)
    found = band_search(table.losses, table.axes, evaluate, context.spec.seed, equal)
    return np.vstack([_not_dominated(equal, found, evaluate, table), found]) if len(found) else found


def _equal_strengths(context: Context, table: SensitivityTable) -> np.ndarray:
    """Return the choices that compress all layers equally by one axis, for every axis and strength."""
    space, anatomy = context.spec.space, context.subject.anatomy
    rows = [[0] * len(table.names)]
    for axis in sorted(set(table.axes)):
        most = max(len(values) for values, owner in zip(table.values, table.axes, strict=True) if owner == axis) - 1
        for step in range(1, most + 1):
            strengths = tuple(step / most if at == axis else 0.0 for at in range(len(space.steps)))
            params = space.uniform(anatomy, strengths)
            pairs = zip(table.names, table.values, strict=True)
            rows.append([int(np.abs(np.array(values) - params[name]).argmin()) for name, values in pairs])
    return np.unique(rows, axis=0)[1:]


def _not_dominated(
    rows: np.ndarray, found: np.ndarray, evaluate: Callable[[np.ndarray], Evaluation], table: SensitivityTable
) -> np.ndarray:
    """Return the rows within the limits that were not found, and beat each found row in the loss or in a cost."""
    rows = rows[(rows[:, None] != found).any(2).all(1)]
    if not len(rows):
        return rows
    (costs_NC, excess_N), others_MC = evaluate(rows), evaluate(found).costs_NC
    values, others = np.column_stack([table.sums(rows), costs_NC]), np.column_stack([table.sums(found), others_MC])
    dominated = np.any(np.all(others[None] <= values[:, None], axis=2), axis=1)
    kept: np.ndarray = rows[(excess_N <= 0) & ~dominated]
    return kept


def best_sums(context: Context, table: SensitivityTable, cost_names: list[str], count: int) -> list[dict[str, float]]:
    """Return the parameters of about `count` plans with the best sums in the table, spread over the costs.

    The list is empty if no plan of the table meets the limits.
    """
    chosen = seeds_within_limits(context, table, cost_names)
    if not len(chosen):
        return []
    rows = _representatives(_log_costs(context, table, cost_names, chosen), table.sums(chosen), count)
    return [_params(context, table, chosen[row]) for row in rows]


def first_by_table(
    context: Context, table: SensitivityTable, cost_names: list[str], seeds: np.ndarray, count: int
) -> list[dict[str, float]]:
    """Return `first_trainings` of the plans of `seeds_within_limits`; none if no plan meets the limits."""
    if not len(seeds):
        return []
    logs_NC = _log_costs(context, table, cost_names, seeds)
    return first_trainings(context, table, seeds, logs_NC, table.sums(seeds), count)


def first_trainings(
    context: Context, table: SensitivityTable, chosen: np.ndarray, logs_NC: np.ndarray, losses: np.ndarray, count: int
) -> list[dict[str, float]]:
    """Return the parameters of the plans with the smallest loss in bands of each cost, in the order of training.

    Plans whose answers are farther from the teacher's than from one answer for all inputs can be trainable, or not; so
    that they do not take most of a short study, they come last and are a quarter at most, if there are others. There
    may be time for only a few plans: the first one saves most for its loss, or is the middle one of doubtful plans, and
    then always comes the middle of a widest gap, so that the first ones span the range. If a limit is on what training
    gives, such as "lose at most 1 point", the largest one comes before, as the most likely to meet the limit, and then
    the middle one.

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
    doubtful = losses > DOUBTFUL_LOSS
    few = 0 if not doubtful.any() else count if doubtful.all() else min(-(-count // DOUBTFUL_SHARE), count - 1)
    on_training = any(not limit.objective.is_cost for limit in context.spec.limits)
    designs: list[dict[str, float]] = []
    for members, number in ((np.flatnonzero(~doubtful), count - few), (np.flatnonzero(doubtful), few)):
        if len(members) and number:
            picked = members[_representatives(logs_NC[members], losses[members], number)]
            ends = [0] if on_training and not designs else []
            first = None
            if not ends and losses[picked[0]] <= DOUBTFUL_LOSS:
                first = _saving_most(logs_NC[picked], losses[picked], logs_NC[members].max(0))
            order = [*ends, *middles(len(ends) - 1, len(picked), first)]
            designs += [_params(context, table, chosen[picked[at]]) for at in order]
    return designs


def _saving_most(logs_NC: np.ndarray, losses: np.ndarray, largest_C: np.ndarray) -> int:
    """Return the plan whose rectangle below the largest costs and a doubtful loss is largest, summed over the costs."""
    saved_N = (largest_C - logs_NC).sum(1)
    return int((saved_N * (DOUBTFUL_LOSS - losses)).argmax())


def _log_costs(context: Context, table: SensitivityTable, cost_names: list[str], chosen: np.ndarray) -> np.ndarray:
    """Return the logarithms of the costs of at least one plan."""
    costs = context.cost_model.of(table.combine(chosen))
    return safe_log(np.column_stack([costs[name] for name in cost_names]))


def _params(context: Context, table: SensitivityTable, chosen: np.ndarray) -> dict[str, float]:
    return table.params(chosen) | context.spec.space.recovery.usual()


def _representatives(logs_NC: np.ndarray, losses: np.ndarray, count: int) -> list[int]:
    """Return the rows of the plans with the smallest loss in bands of each cost, about `count`, the largest first.

    The size of a network is the mean of the logarithms of its costs.
    """
    bands = -(-count // logs_NC.shape[1])
    picked = dict.fromkeys(row for logs in logs_NC.T for row in _spread(logs, losses, bands))
    return sorted(picked, key=lambda row: -logs_NC[row].sum())


def _spread(log_costs: np.ndarray, losses: np.ndarray, count: int) -> list[int]:
    """Return, for each of `count` bands of equal width, the row with the smallest loss; skip empty bands."""
    bands = np.linspace(log_costs.min(), log_costs.max(), count + 1)[1:-1]
    band = np.digitize(log_costs, bands)
    order = np.lexsort((log_costs, losses, band))
    first = np.unique(band[order], return_index=True)[1]
    return [int(row) for row in order[first]]
