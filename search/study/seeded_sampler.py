"""A sampler that gives the same draws for the same trial, whether or not the study was stopped in between."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.study.records import REASON

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class SeededSampler(BaseSampler):
    """Any sampler of Optuna's, made anew for every trial with a seed of that trial's own.

    Optuna keeps no sampler in its storage, so a resumed study would repeat its first draws and two workers would ask
    for the same points. Here the state is only what the storage holds and (base seed, number of the trial). A trial
    that was cut short is not counted: it is run again, and the draws after it are as they would have been. One that
    failed with a reason is, or the next would draw the same plan and fail again.

    Parameters
    ----------
    make
        The class or function that makes the sampler, called with `seed=`.
    seed
        The base seed.
    """

    def __init__(self, make: Callable[..., BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._inner = self._at(0)

    def _at(self, place: int) -> BaseSampler:
        seed = int(np.random.SeedSequence((self._seed, place)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._make(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        cut_short = [other for other in failed if other.number < trial.number and REASON not in other.user_attrs]
        self._inner = self._at(trial.number - len(cut_short))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Ask the sampler of this trial."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the sampler of this trial."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - Optuna's signature
        """Ask the sampler of this trial."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the sampler of this trial."""
        self._inner.after_trial(study, trial, state, values)
