"""Optuna's TPE, which draws all discrete parameters of a plan at once as soon as a study is long.

Suffixes of array names: `K` kernels, one per trial and the prior, `P` parameters of one distribution, `V` its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma_multiobjective, default_weights
from optuna.trial import TrialState
from scipy.special import ndtr

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SHORT = 300  # finished trials up to which Optuna draws each parameter (chosen)
MOST_VALUES = 64  # of a parameter; those with more are drawn by Optuna, one by one (chosen)
NARROWEST = 100  # least width of a kernel, as a part of the range: Optuna's


class JointTPE(TPESampler):
    """A tree-structured Parzen estimator that takes milliseconds for a plan, however long the study is.

    Optuna's estimator of several objectives splits the trials anew for each parameter of a plan. Here, after the first
    trials of a study, which draw the same as with Optuna's, the trials are split once for a plan, and the parameters
    that have few values are drawn together: each by its own estimator, as Optuna draws them, with the same kernels,
    weights and number of candidates (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization, §4).
    """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together: in a long study, the discrete ones."""
        finished = _finished(study)
        if len(study.directions) == 1 or len(finished) <= SHORT:
            return super().infer_relative_search_space(study, trial)
        return {name: one for name, one in finished[-1].distributions.items() if len(_values(one)) > 1}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw these parameters."""
        alike: dict[BaseDistribution, list[str]] = {}
        for name, distribution in search_space.items():
            alike.setdefault(distribution, []).append(name)
        if not alike:
            return {}
        finished = _finished(study)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        others = [other for other in running if other.number != trial.number]
        halves = _split_trials(study, [*finished, *others], default_gamma_multiobjective(len(finished)))
        good, bad = ([one for one in half if search_space.keys() <= one.params.keys()] for half in halves)
        drawn: dict[str, Any] = {}
        for distribution, names in alike.items():
            values_V = _values(distribution)
            good_PV, bad_PV = (
                _masses(
                    np.array([[one.params[name] for name in names] for one in half]).reshape(-1, len(names)),
                    weights,
                    distribution,
                )
                for half, weights in ((good, np.ones(len(good))), (bad, default_weights(len(bad))))
            )
            ends_PV = good_PV.cumsum(1)
            rolls = self._rng.rng.random_sample((len(names), self._n_ei_candidates, 1))
            candidates = (rolls > ends_PV[:, None, :-1]).sum(2)
            gains = np.take_along_axis(np.log(good_PV) - np.log(bad_PV), candidates, 1)
            best_P = np.take_along_axis(candidates, gains.argmax(1)[:, None], 1)[:, 0]
            convert = int if isinstance(distribution, IntDistribution) else float
            drawn |= {name: convert(values_V[at]) for name, at in zip(names, best_P, strict=True)}
        return {name: drawn[name] for name in search_space}


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _values(distribution: BaseDistribution) -> np.ndarray:
    """Return the values of a discrete distribution; none if it is another one or has too many."""
    if not isinstance(distribution, FloatDistribution | IntDistribution) or distribution.step is None:
        return np.zeros(0)
    count = 1 + round((distribution.high - distribution.low) / distribution.step)
    return distribution.low + distribution.step * np.arange(count if count <= MOST_VALUES else 0)


def _masses(observed_KP: np.ndarray, weights_K: np.ndarray, distribution: BaseDistribution) -> np.ndarray:
    """Return the probability of each value, shape (P, V), by a mixture of truncated normal kernels at observed values.

    A kernel is as wide as the distance to the farther of its neighbours, and the prior, which is the last one, is as
    wide as the range.
    """
    assert isinstance(distribution, FloatDistribution | IntDistribution), "others have no `_values`"
    values_V = _values(distribution)
    step = distribution.step or 0.0
    edges = np.append(values_V - step / 2, values_V[-1] + step / 2)
    if distribution.log:
        edges, observed_KP = np.log(edges), np.log(observed_KP)
    low, high = edges[0], edges[-1]
    count = len(observed_KP)
    order_KP = observed_KP.argsort(0, kind="stable")
    sorted_KP = np.take_along_axis(observed_KP, order_KP, 0)
    low_P, high_P, middle_P = (np.full(observed_KP.shape[1], one) for one in (low, high, (low + high) / 2))
    bounded_KP = np.vstack([low_P, sorted_KP, high_P])
    gaps_KP = np.diff(bounded_KP, axis=0)
    wide_KP = np.maximum(gaps_KP[:-1], gaps_KP[1:])
    if count > 1:  # the ends of the range are no neighbours
        wide_KP[0], wide_KP[-1] = gaps_KP[1], gaps_KP[-2]
    sigma_KP = np.empty_like(wide_KP)
    np.put_along_axis(sigma_KP, order_KP, wide_KP.clip((high - low) / min(NARROWEST, 2 + count), high - low), 0)
    mu_KP, sigma_KP = np.vstack([observed_KP, middle_P]), np.vstack([sigma_KP, high_P - low_P])
    below = ndtr((edges - mu_KP[..., None]) / sigma_KP[..., None])  # shape (K, P, V + 1)
    inside = np.diff(below, axis=2) / (below[..., -1:] - below[..., :1])
    weights_K = np.append(weights_K, 1.0)
    masses_PV: np.ndarray = np.tensordot(weights_K / weights_K.sum(), inside, 1).clip(np.finfo(float).tiny)
    return masses_PV
