"""Which plans are profiled before a search, and the most work that plans of the space have."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from objectives.objective import Partwise
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from objectives import Objective
    from objectives.layers import Parts
    from search.evaluation.context import Context

PROFILED_NETWORKS = 20  # networks that are profiled before a search (chosen)
MIXED_PLANS = 4  # uniform plans; a profiled plan takes each parameter from one of them (chosen)
MIXED_FOR_PARTS = 16  # the same where parts are measured (chosen)
LEVELS = 0.0, 0.5, 1.0  # strengths of the uniform plans among those that may be proposed (chosen)
MIN_SHAPE, SHAPE_RANGE = 0.5, 4.0  # of the beta distribution of these plans' strengths around one strength (chosen)


def profiled_params(context: Context, objective: Objective) -> Iterator[dict[str, float]]:
    """Yield the parameters of the plans to profile, the same ones in every process.

    Whole networks tell most if each set of axes occurs alone, parts if each layer has another combination of them.
    """
    space, anatomy = context.spec.space, context.subject.anatomy
    rng = np.random.default_rng(0)
    axes = len(space.steps)
    for mask in itertools.cycle(mask for mask in itertools.product((1, 0), repeat=axes) if any(mask)):
        if isinstance(objective, Partwise):
            strength = rng.random()
            shapes = MIN_SHAPE + SHAPE_RANGE * strength, MIN_SHAPE + SHAPE_RANGE * (1 - strength)
            strengths = rng.beta(*shapes, (MIXED_FOR_PARTS, axes))
        else:
            strengths = rng.random((MIXED_PLANS, axes)) * mask
        mixed = [space.uniform(anatomy, tuple(map(float, each))) for each in strengths]
        yield {name: mixed[rng.integers(len(mixed))][name] for name in mixed[0]}


def work_of_plans(context: Context, objective: Objective, work_of: Callable[[Parts], np.ndarray]) -> np.ndarray:
    """Return the work of networks such as may be proposed, of uniform and of mixed strengths, shape (M, F)."""
    space, anatomy = context.spec.space, context.subject.anatomy
    uniform = (space.uniform(anatomy, each) for each in itertools.product(LEVELS, repeat=len(space.steps)))
    mixed = itertools.islice(profiled_params(context, objective), PROFILED_NETWORKS)
    plans = [None, *map(context.plan, itertools.chain(uniform, mixed))]
    return work_of(architectures_of(context.cost_model.frame, plans).parts())
