"""Check plans against the limits on costs, which are known before training."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from search.study.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from objectives import Limit
    from search.evaluation.context import Context


def limits_before_training(context: Context) -> list[Limit]:
    """Return the limits of the study on costs, which are known before training."""
    return [limit for limit in context.spec.limits if limit.objective.is_cost]


def excess_over_limits(context: Context, costs: Mapping[str, np.ndarray], *, margin: bool = True) -> np.ndarray:
    """Return by how much plans exceed the limits on these costs, relative to the bound, shape (plans,); at most 0: not.

    Parameters
    ----------
    context
        The study.
    costs
        Costs of the plans, arrays of shape (plans,).
    margin
        Whether the error of each cost's model is added to its predictions.
    """
    excess = np.full(len(next(iter(costs.values()))), -np.inf)
    for limit in limits_before_training(context):
        name = limit.objective.name
        if name in costs:
            values = costs[name] * (1 + (context.cost_model.error(limit) if margin else 0.0))
            excess = np.maximum(excess, [limit.excess(float(value)) for value in values])
    return excess


def meet_limits(context: Context, costs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which plans meet the limits on these costs, shape (plans,); the error of each cost's model is a margin."""
    feasible: np.ndarray = excess_over_limits(context, costs) <= 0
    return feasible


def meets_limits(context: Context, values: dict[str, float]) -> bool:
    """Whether these costs of one plan meet every limit that is known before training."""
    return all(limit.excess(values[limit.objective.name]) <= 0 for limit in limits_before_training(context))


def costs_of_uniform(context: Context, strengths: tuple[float, ...]) -> dict[str, float]:
    """Return the limited costs of the uniform plan with these strengths; costs without a formula are measured."""
    plan = context.plan(context.spec.space.uniform(context.subject.anatomy, strengths))
    exact = context.cost_model.predict(plan).exact
    limited = {limit.objective.name: limit.objective for limit in limits_before_training(context)}
    unknown = [objective for name, objective in limited.items() if name not in exact]
    return exact | (context.measure(context.build(plan), unknown) if unknown else {})


def sets_of_axes(count: int) -> list[tuple[float, ...]]:
    """Return every non-empty set of axes, as strengths of 0 and 1."""
    sets = itertools.product((0, 1), repeat=count)
    return [tuple(float(chosen) for chosen in mask) for mask in sets if any(mask)]


def check_reachable(context: Context) -> dict[tuple[float, ...], dict[str, float]]:
    """Return the limited costs of the strongest plan of each set of axes; empty if there are no limits.

    Raises
    ------
    UserError
        If no such plan meets the limits; the message names the binding limit, the smallest value and the nearest plan.
    """
    limits = limits_before_training(context)
    sets = sets_of_axes(len(context.spec.space.steps))
    reachable = {mask: costs_of_uniform(context, mask) for mask in sets} if limits else {}
    if not limits or any(meets_limits(context, values) for values in reachable.values()):
        return reachable
    nearest, values = min(reachable.items(), key=lambda item: max(x.excess(item[1][x.objective.name]) for x in limits))
    binding = max(limits, key=lambda limit: limit.excess(values[limit.objective.name]))
    plan = context.plan(context.spec.space.uniform(context.subject.anatomy, nearest))
    reached = values[binding.objective.name]
    raise UserError(
        f"the limit {binding} cannot be met: the smallest plan reaches {binding.objective.name} {reached:.10g}; "
        f"the nearest plan is: {plan.words()}; loosen the limit to {reached:.10g} or extend the ranges of the axes"
    )
