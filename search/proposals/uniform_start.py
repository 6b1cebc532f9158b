"""Initial designs that compress every layer alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.proposals.limits import check_reachable, costs_of_uniform, holds, limits_before_training, sets_of_axes

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock

HALVINGS = 5  # of the strength, to find the weakest plan that holds the limits
WAYS = (0.0, 0.25, 0.5)  # designs lie at the weakest plan within the limits and so far on the way to the strongest


@dataclass(frozen=True, slots=True)
class UniformStart:
    """Start with the plans that compress every layer alike, each axis alone and all together."""

    def __call__(self, context: Context, study: Study, clock: BudgetClock) -> list[dict[str, float]]:  # noqa: ARG002
        """Return the parameters of each plan."""
        return uniform_designs(context)


def uniform_designs(
    context: Context, reachable: dict[tuple[float, ...], dict[str, float]] | None = None
) -> list[dict[str, float]]:
    """Return the parameters of the uniform plans to start with, scaled until they hold the limits.

    Each axis alone, and all together, from the weakest plan that holds the limits on.

    Parameters
    ----------
    context
        The study.
    reachable
        As from `check_reachable`, where that was asked before.

    Raises
    ------
    UserError
        If no plan holds the limits.
    """
    reachable = check_reachable(context) if reachable is None else reachable
    space, axes = context.spec.space, len(context.spec.space.steps)
    params = []
    for mask in sorted(sets_of_axes(axes), key=lambda mask: -sum(mask)):
        if sum(mask) not in {1, axes} or not holds(context, reachable.get(mask, {})):
            continue
        weakest = _weakest(context, mask)
        for way in WAYS if sum(mask) == axes else WAYS[1:2]:
            strength = weakest + way * (1 - weakest)
            params.append(space.uniform(context.subject.anatomy, tuple(strength * chosen for chosen in mask)))
    return params


def _weakest(context: Context, mask: tuple[float, ...]) -> float:
    """Return the least strength of these axes that holds the limits, by bisection."""
    if not limits_before_training(context) or holds(context, costs_of_uniform(context, (0.0,) * len(mask))):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if holds(context, costs_of_uniform(context, tuple(middle * chosen for chosen in mask))):
            high = middle
        else:
            low = middle
    return high
