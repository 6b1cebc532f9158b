"""A random sampler that is stratified by the strength of compression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler

from search.study.records import RANGES

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MIN_SHAPE, SHAPE_RANGE = 0.5, 4.0  # parameters of the beta distribution around a trial's strength (chosen)


class StratifiedRandom(BaseSampler):
    """Sample random plans whose strengths of compression are uniformly distributed.

    Plans of many independent uniform parameters all compress by similar amounts. This sampler draws a strength for each
    trial and scatters the parameters around it, between the weakest and the strongest value that the study's attribute
    `ends` holds for each parameter, or over the parameter's range.

    Parameters
    ----------
    seed
        Seed of the draws.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._strength = 0.0

    def reseed_rng(self) -> None:
        """Reseed the random generators."""
        self._rng = np.random.default_rng()
        self._random.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:  # noqa: ARG002 - Optuna's signature
        """Draw the strength of the trial."""
        self._strength = float(self._rng.random())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Return an empty space: each parameter is sampled independently."""
        return {}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - Optuna's signature
        """Sample around the strength of the trial."""
        distribution = param_distribution
        if not isinstance(distribution, FloatDistribution | IntDistribution):
            return self._random.sample_independent(study, trial, param_name, distribution)
        weak, strong = study.user_attrs.get(RANGES, {}).get(param_name, (distribution.low, distribution.high))
        position = self._rng.beta(
            MIN_SHAPE + SHAPE_RANGE * self._strength, MIN_SHAPE + SHAPE_RANGE * (1 - self._strength)
        )
        if distribution.log:
            value = math.exp(math.log(weak) + position * (math.log(strong) - math.log(weak)))
        else:
            value = weak + position * (strong - weak)
        if distribution.step:
            value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
        value = min(max(value, distribution.low), distribution.high)
        return int(value) if isinstance(distribution, IntDistribution) else round(value, 12)
