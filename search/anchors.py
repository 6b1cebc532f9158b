"""The plans that compress every layer alike: where a study starts, and what tells whether its limits can be met."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from optuna.trial import FixedTrial

from search.errors import UserError

if TYPE_CHECKING:
    from objectives import Limit
    from search.trial import Bench

HALVINGS = 5  # of the strength, to find the weakest plan that holds the limits
BEYOND = (0.0, 0.25, 0.5)  # anchors lie at the weakest plan within the limits and this far on the way to the strongest


def anchors(bench: Bench) -> list[dict[str, float]]:
    """Return the parameters of the uniform plans to start with, scaled until they hold the limits.

    Each axis alone, and all together, from the weakest plan that holds the limits on.

    Raises
    ------
    UserError
        If no plan holds them: the limit that binds, the smallest value and the nearest plan are named.
    """
    axes = len(bench.spec.space.steps)
    every = [tuple(float(chosen) for chosen in mask) for mask in itertools.product((0, 1), repeat=axes) if any(mask)]
    reachable = {mask: costs(bench, mask) for mask in every} if _limits(bench) else {}
    _check_reachable(bench, reachable)
    params = []
    for mask in sorted(every, key=lambda mask: -sum(mask)):
        if sum(mask) not in {1, axes} or not holds(bench, reachable.get(mask, {})):
            continue
        weakest = _weakest(bench, mask)
        for way in BEYOND if sum(mask) == axes else BEYOND[1:2]:
            strength = weakest + way * (1 - weakest)
            params.append(bench.spec.space.uniform(bench.anatomy, tuple(strength * chosen for chosen in mask)))
    return params


def costs(bench: Bench, strengths: tuple[float, ...]) -> dict[str, float]:
    """Foresee what is limited of the uniform plan with these strengths, or measure it, untrained."""
    plan = bench.spec.space.suggest(FixedTrial(bench.spec.space.uniform(bench.anatomy, strengths)), bench.anatomy)
    foreseen = {name: float(values[0]) for name, values in bench.foresight.costs([plan]).items()}
    limited = {limit.objective.name: limit.objective for limit in _limits(bench)}
    unknown = [objective for name, objective in limited.items() if name not in foreseen]
    return foreseen | (bench.costs(bench.build(plan), unknown) if unknown else {})


def holds(bench: Bench, values: dict[str, float]) -> bool:
    """Whether every limit that is known before training holds."""
    return all(limit.excess(values[limit.objective.name]) <= 0 for limit in _limits(bench))


def _limits(bench: Bench) -> list[Limit]:
    return [limit for limit in bench.spec.limits if limit.objective.is_cost]


def _weakest(bench: Bench, mask: tuple[float, ...]) -> float:
    if not _limits(bench) or holds(bench, costs(bench, (0.0,) * len(mask))):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if holds(bench, costs(bench, tuple(middle * chosen for chosen in mask))):
            high = middle
        else:
            low = middle
    return high


def _check_reachable(bench: Bench, reachable: dict[tuple[float, ...], dict[str, float]]) -> None:
    limits = _limits(bench)
    if not limits or any(holds(bench, values) for values in reachable.values()):
        return
    nearest, values = min(reachable.items(), key=lambda item: max(x.excess(item[1][x.objective.name]) for x in limits))
    binding = max(limits, key=lambda limit: limit.excess(values[limit.objective.name]))
    plan = bench.spec.space.suggest(FixedTrial(bench.spec.space.uniform(bench.anatomy, nearest)), bench.anatomy)
    reached = values[binding.objective.name]
    raise UserError(
        f"the limit {binding} cannot be met: the smallest plan reaches {binding.objective.name} {reached:.10g}; "
        f"the nearest plan is: {plan.words()}; loosen the limit to {reached:.10g} or let the axes go further"
    )
