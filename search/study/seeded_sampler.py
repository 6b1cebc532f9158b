"""A sampler whose draws for a trial do not depend on whether the study was stopped and resumed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.samplers._ga import BaseGASampler

from search.study.history import Interrupted, read
from search.study.seen_trials import seen_by_sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState


class SeededSampler(BaseSampler):
    """A wrapper that creates an Optuna sampler for every trial, with a seed for that trial.

    Optuna does not store samplers, so a resumed study would repeat its first draws, and two workers would propose the
    same points. Here the draws depend only on the stored trials, the base seed and the number of the trial.
    Interrupted trials are not counted: they are run again, and later trials draw as if there had been no interruption.
    Trials that failed with a reason are counted; otherwise the next trial would draw the same plan and fail again.

    Parameters
    ----------
    make
        The class or function that creates the sampler; it is called with `seed=`.
    seed
        The base seed.
    """

    def __init__(self, make: Callable[..., BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._inner = self._sampler_at(0)
        self._seen: Study | None = None

    def _sampler_at(self, position: int) -> BaseSampler:
        """Create the sampler of the trial at a position among the trials that are counted."""
        seed = int(np.random.SeedSequence((self._seed, position)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._make(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Create the sampler of this trial, and what it sees; one that runs a trial again draws as that one did."""
        position = read(study, Interrupted).position(trial)
        self._inner = self._sampler_at(position)
        self._seen = seen_by_sampler(study, whole=isinstance(self._inner, BaseGASampler))
        self._inner.before_trial(self._seen, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the search space of the sampler of this trial."""
        return self._inner.infer_relative_search_space(self._seen or study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw with the sampler of this trial."""
        return self._inner.sample_relative(self._seen or study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - Optuna's signature
        """Draw one parameter with the sampler of this trial."""
        return self._inner.sample_independent(self._seen or study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass the result to the sampler of this trial."""
        self._inner.after_trial(study, trial, state, values)
