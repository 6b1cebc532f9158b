"""Random plans of every strength."""

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


class StratifiedRandom(BaseSampler):
    """Random plans, as many weak ones as strong ones.

    Independent uniform draws of many parameters all compress about alike. Here a strength is drawn for each trial, and
    the parameters scatter around it, between the ends that the study's attribute `ends` names, or its range.

    Parameters
    ----------
    seed
        Of the draws.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._dice = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._strength = 0.0

    def reseed_rng(self) -> None:
        """Take other random numbers."""
        self._dice = np.random.default_rng()
        self._random.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:  # noqa: ARG002 - Optuna's signature
        """Draw the strength of the trial."""
        self._strength = float(self._dice.random())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Return none: each parameter is drawn by itself."""
        return {}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return none."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - Optuna's signature
        """Draw around the strength of the trial."""
        kind = param_distribution
        if not isinstance(kind, FloatDistribution | IntDistribution):
            return self._random.sample_independent(study, trial, param_name, kind)
        weak, strong = study.user_attrs.get(RANGES, {}).get(param_name, (kind.low, kind.high))
        place = self._dice.beta(0.5 + 4 * self._strength, 0.5 + 4 * (1 - self._strength))
        if kind.log:
            value = math.exp(math.log(weak) + place * (math.log(strong) - math.log(weak)))
        else:
            value = weak + place * (strong - weak)
        if kind.step:
            value = kind.low + round((value - kind.low) / kind.step) * kind.step
        value = min(max(value, kind.low), kind.high)
        return int(value) if isinstance(kind, IntDistribution) else round(value, 12)
