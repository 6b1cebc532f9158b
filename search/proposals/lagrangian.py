"""Lagrangian search: the best sums of a sensitivity table, for many multipliers of the costs; no network is built."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from search.proposals.limits import hold, limits_before_training
from search.proposals.sensitivity_table import logarithms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from objectives.objective import CostFormula
    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable
    from spaces.costs.architectures import Architectures

MULTIPLIERS = np.geomspace(3e-4, 10, 28)  # nats for a factor of e in cost (fitted)
SWEEPS = 6  # of coordinate descent, at most
TIE = 0.01  # nats that a factor of e in any cost may lose: of plans about as good, the smaller (fitted)


def lagrangian_search(table: SensitivityTable, costs: Sequence[tuple[CostFormula, float]]) -> np.ndarray:
    """Return choices that are best in the sum of their losses, for many weights of the costs and sets of axes.

    Coordinate descent on loss + multiplier * log(cost), every multiplier and set of axes at once: each axis alone, each
    pair, all. Several costs are weighed evenly, and each ten times the others. Shape (plans, parameters), no row twice.

    Parameters
    ----------
    table
        The single changes.
    costs
        What is to be small, each with the constant that is to be added to its `foreseen`.

    References
    ----------
    Everett 1963, Operations Research 11(3): what minimizes the Lagrangian is on the front of loss and cost.
    """
    axes = np.array(table.axes)
    many = range(axes.max() + 1)
    sets = [chosen for size in range(1, len(many) + 1) for chosen in itertools.combinations(many, size)]
    states = list(itertools.product(sets, MULTIPLIERS))
    free_SP = np.array([np.isin(axes, chosen) for chosen, _ in states])
    multipliers_S = np.array([multiplier for _, multiplier in states])
    weights = np.full((len(costs), len(costs)), 0.1) + 0.9 * np.eye(len(costs))
    if len(costs) > 1:
        weights = np.concatenate([weights, np.ones((1, len(costs)))])

    def log_costs(architectures: Architectures, weight: np.ndarray) -> np.ndarray:
        parts = architectures.parts()
        logs = (logarithms(cost.foreseen(parts) + constant) for cost, constant in costs)
        total: np.ndarray = sum(share * log for share, log in zip(weight, logs, strict=True)) / weight.sum()
        return total

    found = []
    for weight in weights:
        chosen_SP = np.zeros(free_SP.shape, dtype=int)
        for _ in range(SWEEPS):
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


def search_within_limits(context: Context, table: SensitivityTable, wanted: list[str]) -> np.ndarray:
    """Return choices from the table that are best in the sum of their losses and hold the limits.

    What is cheap in one cost need not be in another: where most of the plans that are cheap in what is wanted exceed a
    limit, plans are sought that are also cheap in what is limited.
    """
    known = context.cost_model.formulas
    limited = [limit.objective.name for limit in limits_before_training(context) if limit.at_most is not None]
    both = tuple(name for name in dict.fromkeys([*wanted, *limited]) if name in known)
    found = np.zeros((0, len(table.names)), dtype=int)
    for names in dict.fromkeys((tuple(wanted), both)):  # once, where all that is limited is wanted
        chosen = lagrangian_search(table, [known[name] for name in names])
        held = chosen[hold(context, context.cost_model.of(table.combine(chosen)))]
        found = np.unique(np.concatenate([found, held]), axis=0)
        if 2 * len(held) >= len(chosen):
            break
    return found


def best_sums(context: Context, table: SensitivityTable, wanted: list[str], count: int) -> list[dict[str, float]]:
    """Return the parameters of about as many plans as named, best in the sum of the table and spread over the costs.

    The list is empty where no plan of the table holds the limits.
    """
    chosen = search_within_limits(context, table, wanted)
    if not len(chosen):
        return []
    costs = context.cost_model.of(table.combine(chosen))
    logs = logarithms(np.column_stack([costs[name] for name in wanted]))
    losses = table.sums(chosen) + TIE * logs.sum(1)
    return representatives(context, table, chosen, logs, losses, np.ones(len(chosen), dtype=bool), count)


def representatives(
    context: Context,
    table: SensitivityTable,
    chosen: np.ndarray,
    logs_NC: np.ndarray,
    losses: np.ndarray,
    held: np.ndarray,
    count: int,
) -> list[dict[str, float]]:
    """Return the parameters of the plans of least loss in bands of each cost, the largest network first.

    Parameters
    ----------
    context, table
        The study and its single changes.
    chosen
        Choices from the table, a row a plan.
    logs_NC, losses, held
        Logarithm of each cost, the loss, and whether it may be taken, of each plan.
    count
        How many plans, about.
    """
    bands = -(-count // logs_NC.shape[1])
    picked = dict.fromkeys(row for logs in logs_NC.T for row in _spread(logs, losses, held, bands))
    usual = context.spec.space.recovery.usual()
    return [table.params(chosen[row]) | usual for row in sorted(picked, key=lambda row: -logs_NC[row, 0])]


def _spread(place: np.ndarray, losses: np.ndarray, held: np.ndarray, count: int) -> list[int]:
    """Return the rows of least loss in `count` bands of equal width, of those that hold."""
    rows = np.flatnonzero(held)
    if not len(rows):
        return []
    bands = np.linspace(place[rows].min(), place[rows].max(), count + 1)[1:-1]
    band = np.digitize(place[rows], bands)
    return [int(min(rows[band == number], key=lambda row: losses[row])) for number in np.unique(band)]
