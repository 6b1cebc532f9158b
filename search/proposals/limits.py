"""Which plans hold the limits that are known before training."""

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
    """Return the limits of the study that are known before training."""
    return [limit for limit in context.spec.limits if limit.objective.is_cost]


def hold(context: Context, costs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which plans hold the limits on these costs, shape (plans,), with the error of each model as a margin."""
    held = np.ones(len(next(iter(costs.values()))), dtype=bool)
    for limit in limits_before_training(context):
        name = limit.objective.name
        if name in costs:
            cautious = costs[name] * (1 + context.cost_model.error(limit))
            held &= np.array([limit.excess(float(value)) <= 0 for value in cautious], dtype=bool)
    return held


def holds(context: Context, values: dict[str, float]) -> bool:
    """Whether every limit that is known before training holds."""
    return all(limit.excess(values[limit.objective.name]) <= 0 for limit in limits_before_training(context))


def costs_of_uniform(context: Context, strengths: tuple[float, ...]) -> dict[str, float]:
    """Return the limited costs of the uniform plan with these strengths; without a formula they are measured."""
    plan = context.plan(context.spec.space.uniform(context.subject.anatomy, strengths))
    exact = context.cost_model.predict(plan).exact
    limited = {limit.objective.name: limit.objective for limit in limits_before_training(context)}
    missing = [objective for name, objective in limited.items() if name not in exact]
    return exact | (context.measure(context.build(plan), missing) if missing else {})


def sets_of_axes(count: int) -> list[tuple[float, ...]]:
    """Return every set of axes but the empty one, as strengths of 0 and 1."""
    sets = itertools.product((0, 1), repeat=count)
    return [tuple(float(chosen) for chosen in mask) for mask in sets if any(mask)]


def check_reachable(context: Context) -> dict[tuple[float, ...], dict[str, float]]:
    """Return what the strongest plan of each set of axes costs; nothing without limits.

    Raises
    ------
    UserError
        If none holds the limits: the limit that binds, the smallest value and the nearest plan are named.
    """
    limits = limits_before_training(context)
    sets = sets_of_axes(len(context.spec.space.steps))
    reachable = {mask: costs_of_uniform(context, mask) for mask in sets} if limits else {}
    if not limits or any(holds(context, values) for values in reachable.values()):
        return reachable
    nearest, values = min(reachable.items(), key=lambda item: max(x.excess(item[1][x.objective.name]) for x in limits))
    binding = max(limits, key=lambda limit: limit.excess(values[limit.objective.name]))
    plan = context.plan(context.spec.space.uniform(context.subject.anatomy, nearest))
    reached = values[binding.objective.name]
    raise UserError(
        f"the limit {binding} cannot be met: the smallest plan reaches {binding.objective.name} {reached:.10g}; "
        f"the nearest plan is: {plan.words()}; loosen the limit to {reached:.10g} or let the axes go further"
    )
