"""Check plans against the limits on costs, which are known before training."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from search.study.errors import LimitsUnmet
from search.study.unmet import Candidate, details, loosened, shortfall

if TYPE_CHECKING:
    from collections.abc import Mapping

    from objectives import Limit
    from search.evaluation.context import Context
    from search.study.unmet import Shortfall
    from spaces import Plan


def limits_before_training(context: Context) -> list[Limit]:
    """Return the limits of the study on costs, which are known before training."""
    return [limit for limit in context.spec.limits if limit.objective.is_cost]


def excess_over_limits(context: Context, costs: Mapping[str, np.ndarray], margin: float = 1.0) -> np.ndarray:
    """Return by how much plans exceed the limits on these costs, relative to the bound, shape (plans,); at most 0: not.

    Parameters
    ----------
    context
        The study.
    costs
        Costs of the plans, arrays of shape (plans,).
    margin
        By how many times the error of each cost's model its predictions are raised.
    """
    excess = np.full(len(next(iter(costs.values()))), -np.inf)
    for limit in limits_before_training(context):
        name = limit.objective.name
        if name in costs:
            values = costs[name] * (1 + margin * context.cost_model.error(limit))
            excess = np.maximum(excess, [limit.excess(float(value)) for value in values])
    return excess


def meet_limits(context: Context, costs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which plans meet the limits on these costs, shape (plans,); the error of each cost's model is a margin."""
    feasible: np.ndarray = excess_over_limits(context, costs) <= 0
    return feasible


def meets_limits(context: Context, values: dict[str, float]) -> bool:
    """Whether these costs of one plan meet every limit that is known before training."""
    return all(limit.excess(values[limit.objective.name]) <= 0 for limit in limits_before_training(context))


def costs_of_uniform(context: Context, strengths: tuple[float, ...], *, measured: bool = False) -> dict[str, float]:
    """Return the limited costs of the uniform plan with these strengths.

    Costs without a formula are predicted by their models; those without a model, or all if `measured`, are measured.
    """
    plan = context.plan(context.spec.space.uniform(context.subject.anatomy, strengths))
    exact, modelled = context.cost_model.predict(plan)
    known = exact if measured else exact | modelled
    limited = {limit.objective.name: limit.objective for limit in limits_before_training(context)}
    unknown = [objective for name, objective in limited.items() if name not in known]
    return known | (context.measure_costs(plan, context.build(plan), unknown) if unknown else {})


def limits_need_models(context: Context) -> bool:
    """Whether a limited cost has no formula, so that it must be predicted or measured."""
    return any(limit.objective.name not in context.cost_model.formulas for limit in limits_before_training(context))


def sets_of_axes(count: int) -> list[tuple[float, ...]]:
    """Return every non-empty set of axes, as strengths of 0 and 1."""
    sets = itertools.product((0, 1), repeat=count)
    return [tuple(float(chosen) for chosen in mask) for mask in sets if any(mask)]


def check_reachable(context: Context) -> dict[tuple[float, ...], dict[str, float]]:
    """Return the limited costs of the strongest plan of each set of axes; empty if there are no limits.

    Raises
    ------
    LimitsUnmet
        If no such plan meets the limits. The message names the limit that binds, the value that is enough, and the axis
        that gives most; its details are the best value for each limit.
    """
    limits = limits_before_training(context)
    sets = sets_of_axes(len(context.spec.space.steps))
    for measured in (False, True) if context.cost_model.models else (False,):  # before an error, what was predicted
        reachable = {mask: costs_of_uniform(context, mask, measured=measured) for mask in sets} if limits else {}
        if not limits or any(meets_limits(context, values) for values in reachable.values()):
            return reachable
    plans = {mask: _strongest(context, mask) for mask in sets}
    candidates = [
        Candidate(f"by {plans[mask].words()}", values, {str(x): x.excess(values[x.objective.name]) for x in limits})
        for mask, values in reachable.items()
    ]
    found = shortfall(limits, candidates)
    binding, name = found.binding, found.binding.objective.name
    alone = found.best[binding].excess[str(binding)] > 0
    reached = loosened(binding, found.nearest.values[name])
    how = "cannot be met" if alone or len(limits) == 1 else "cannot be met together with the others"
    nearest = f"the nearest plan reaches {name} {found.nearest.values[name]:.10g}, {found.nearest.name}"
    loosen = f"loosen only this limit, to {reached}," if found.enough is not None else _loosen(found, limits)
    raise LimitsUnmet(
        f"the limit {binding.words} {how}: {nearest}; {loosen} or {_axis_that_gives_most(context, binding, reachable)}",
        details(found, candidates),
    )


def _strongest(context: Context, mask: tuple[float, ...]) -> Plan:
    """Return the plan that compresses every layer as much as possible, with a set of axes."""
    return context.plan(context.spec.space.uniform(context.subject.anatomy, mask))


def _loosen(found: Shortfall, limits: list[Limit]) -> str:
    """Return how far to loosen all limits that the nearest plan misses."""
    values = found.nearest.values
    missed = [limit for limit in limits if found.nearest.excess[str(limit)] > 0]
    bounds = (f"{limit.objective.name} to {loosened(limit, values[limit.objective.name])}" for limit in missed)
    return f"no single limit is in the way, so loosen {' and '.join(bounds)},"


def _axis_that_gives_most(context: Context, limit: Limit, reachable: dict[tuple[float, ...], dict[str, float]]) -> str:
    """Return the advice to extend the axis that alone brings the limited cost nearest to its bound."""
    name = limit.objective.name
    alone = {mask: values for mask, values in reachable.items() if sum(mask) == 1}
    mask = min(alone, key=lambda mask: limit.excess(alone[mask][name]))
    place = mask.index(1.0)
    axis, step = context.spec.space.steps[place], _strongest(context, mask).steps[place]
    return (
        f"extend the range of {type(axis).__name__}, the axis that gives most: alone, at its strongest "
        f"({step.words()}), it reaches {name} {alone[mask][name]:.10g}"
    )
