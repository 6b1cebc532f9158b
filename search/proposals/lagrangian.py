"""Lagrangian search: find the best sums of a sensitivity table for many cost multipliers, without building networks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from search.proposals.limits import limits_before_training, meet_limits
from search.proposals.sensitivity_table import safe_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from objectives.objective import CostFormula
    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable
    from spaces.costs.architectures import Architectures

MULTIPLIERS = np.geomspace(3e-4, 10, 28)  # nats per factor of e in cost (fitted)
MAX_SWEEPS = 6  # sweeps of coordinate descent over all parameters (chosen)
TIE_WEIGHT = 0.01  # nats per factor of e in each cost; of plans with similar losses, the smaller is preferred (fitted)


def lagrangian_search(table: SensitivityTable, costs: Sequence[tuple[CostFormula, float]]) -> np.ndarray:
    """Return the choices with the best sums of losses, for many cost weights and every set of axes.

    Coordinate descent minimizes loss + multiplier * log(cost) for every multiplier and every set of axes (each axis
    alone, each pair, and so on) at once. Several costs are weighted equally, and also with each one at ten times the
    weight of the others.

    Parameters
    ----------
    table
        The sensitivity table.
    costs
        Formulas of the costs to minimize, each with the constant that is added to its value.

    Returns
    -------
    np.ndarray
        Distinct rows of choices, shape (plans, parameters).

    References
    ----------
    Everett 1963, Operations Research 11(3): every minimizer of the Lagrangian is on the front of loss and cost.
    """
    axes = np.array(table.axes)
    numbers = range(axes.max() + 1)
    sets = [chosen for size in range(1, len(numbers) + 1) for chosen in itertools.combinations(numbers, size)]
    states = list(itertools.product(sets, MULTIPLIERS))
    free_SP = np.array([np.isin(axes, chosen) for chosen, _ in states])
    multipliers_S = np.array([multiplier for _, multiplier in states])
    weights = np.full((len(costs), len(costs)), 0.1) + 0.9 * np.eye(len(costs))
    if len(costs) > 1:
        weights = np.concatenate([weights, np.ones((1, len(costs)))])

    def log_costs(architectures: Architectures, weight: np.ndarray) -> np.ndarray:
        parts = architectures.parts()
        logs = (safe_log(cost.foreseen(parts) + constant) for cost, constant in costs)
        total: np.ndarray = sum(share * log for share, log in zip(weight, logs, strict=True)) / weight.sum()
        return total

    found = []
    for weight in weights:
        chosen_SP = np.zeros(free_SP.shape, dtype=int)
        for _ in range(MAX_SWEEPS):
            before = chosen_SP.copy()
            for column, losses in enumerate(table.losses):
                rows = np.flatnonzero(free_SP[:, column])
                trials = np.repeat(chosen_SP[rows], len(losses), axis=0)
                trials[:, column] = np.tile(np.arange(len(losses)), len(rows))
                logs = log_costs(table.combine(trials), weight).reshape(len(rows), -1)
                chosen_SP[rows, column] = (losses + multipliers_S[rows, None] * logs).argmin(1)
            if (before == chosen_SP).all():
                break
        found.append(chosen_SP)
    return np.unique(np.concatenate(found), axis=0)


def search_within_limits(context: Context, table: SensitivityTable, cost_names: list[str]) -> np.ndarray:
    """Return the choices from the table that have the best sums of losses and meet the limits.

    A plan that is cheap in one cost may be expensive in another. If most plans that are cheap in the wanted costs
    exceed a limit, the search is repeated with the limited costs included.
    """
    formulas = context.cost_model.formulas
    limited = [limit.objective.name for limit in limits_before_training(context) if limit.is_upper]
    both = tuple(name for name in dict.fromkeys([*cost_names, *limited]) if name in formulas)
    found = np.zeros((0, len(table.names)), dtype=int)
    for names in dict.fromkeys((tuple(cost_names), both)):  # only once if every limited cost is wanted
        chosen = lagrangian_search(table, [formulas[name] for name in names])
        feasible = chosen[meet_limits(context, context.cost_model.of(table.combine(chosen)))]
        found = np.unique(np.concatenate([found, feasible]), axis=0)
        if 2 * len(feasible) >= len(chosen):
            break
    return found


def best_sums(context: Context, table: SensitivityTable, cost_names: list[str], count: int) -> list[dict[str, float]]:
    """Return the parameters of about `count` plans with the best sums in the table, spread over the costs.

    The list is empty if no plan of the table meets the limits.
    """
    chosen = search_within_limits(context, table, cost_names)
    if not len(chosen):
        return []
    costs = context.cost_model.of(table.combine(chosen))
    logs = safe_log(np.column_stack([costs[name] for name in cost_names]))
    losses = table.sums(chosen) + TIE_WEIGHT * logs.sum(1)
    return representatives(context, table, chosen, logs, losses, np.ones(len(chosen), dtype=bool), count)


def representatives(
    context: Context,
    table: SensitivityTable,
    chosen: np.ndarray,
    logs_NC: np.ndarray,
    losses: np.ndarray,
    allowed: np.ndarray,
    count: int,
) -> list[dict[str, float]]:
    """Return the parameters of the plans with the smallest loss in bands of each cost, the largest network first.

    Parameters
    ----------
    context, table
        The study and its sensitivity table.
    chosen
        Choices from the table, one row per plan, shape (N, parameters).
    logs_NC, losses, allowed
        For each plan, the logarithm of each cost, the loss, and whether it may be picked.
    count
        Approximate number of plans.
    """
    bands = -(-count // logs_NC.shape[1])
    picked = dict.fromkeys(row for logs in logs_NC.T for row in _spread(logs, losses, allowed, bands))
    usual = context.spec.space.recovery.usual()
    return [table.params(chosen[row]) | usual for row in sorted(picked, key=lambda row: -logs_NC[row, 0])]


def _spread(log_costs: np.ndarray, losses: np.ndarray, allowed: np.ndarray, count: int) -> list[int]:
    """Return, for each of `count` bands of equal width, the allowed row with the smallest loss; skip empty bands."""
    rows = np.flatnonzero(allowed)
    if not len(rows):
        return []
    bands = np.linspace(log_costs[rows].min(), log_costs[rows].max(), count + 1)[1:-1]
    band = np.digitize(log_costs[rows], bands)
    return [int(min(rows[band == number], key=lambda row: losses[row])) for number in np.unique(band)]
