"""Initial designs that compress every layer with the same strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.proposals.limits import (
    check_reachable,
    costs_of_uniform,
    limits_before_training,
    meets_limits,
    sets_of_axes,
)

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock

BISECTION_STEPS = 5  # halvings of the strength, to find the weakest plan within the limits (chosen)
STRENGTH_SHARES = (0.0, 0.25, 0.5)  # shares of the way from the weakest allowed plan to the strongest (chosen)


@dataclass(frozen=True, slots=True)
class UniformStart:
    """Start with plans that compress every layer with the same strength: each axis alone, and all axes together."""

    def __call__(self, context: Context, study: Study, clock: BudgetClock) -> list[dict[str, float]]:  # noqa: ARG002
        """Return the parameters of each plan."""
        return uniform_designs(context)


def uniform_designs(
    context: Context, reachable: dict[tuple[float, ...], dict[str, float]] | None = None
) -> list[dict[str, float]]:
    """Return the parameters of the initial uniform plans: each axis alone, and all axes together.

    Their strengths start at that of the weakest plan within the limits.

    Parameters
    ----------
    context
        The study.
    reachable
        The result of `check_reachable`, if it was computed before.

    Raises
    ------
    UserError
        If no plan is within the limits.
    """
    reachable = check_reachable(context) if reachable is None else reachable
    space, axes = context.spec.space, len(context.spec.space.steps)
    params = []
    for mask in sorted(sets_of_axes(axes), key=lambda mask: -sum(mask)):
        if sum(mask) not in {1, axes} or not meets_limits(context, reachable.get(mask, {})):
            continue
        weakest = _weakest(context, mask)
        for share in STRENGTH_SHARES if sum(mask) == axes else STRENGTH_SHARES[1:2]:
            strength = weakest + share * (1 - weakest)
            params.append(space.uniform(context.subject.anatomy, tuple(strength * chosen for chosen in mask)))
    return params


def _weakest(context: Context, mask: tuple[float, ...]) -> float:
    """Return the smallest strength of these axes that is within the limits, by bisection."""
    if not limits_before_training(context) or meets_limits(context, costs_of_uniform(context, (0.0,) * len(mask))):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        if meets_limits(context, costs_of_uniform(context, tuple(middle * chosen for chosen in mask))):
            high = middle
        else:
            low = middle
    return high
