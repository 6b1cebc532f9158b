"""A sampler that proposes plans from a draft, for studies with known costs and expensive trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import TrialState
from scipy.stats import norm
from sklearn.linear_model import BayesianRidge

from search.proposals.draft_records import MIN_LOSS, choices_in, draft_of, metric_names, middle_value
from search.study.records import EARLY_CHECK, STOPPED, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

THRESHOLDS = 256  # random bounds on the costs over which the expected improvement is averaged (chosen)
MIN_REGRESSION_TRIALS = 4  # trained trials; with fewer no regression is fitted
COST_SCALE = 0.1  # scale of the cost features in the regression; on a front they correlate with the loss (fitted)
REDRAWN = 2  # parameters of a plan that are redrawn, on average, once the draft is exhausted (chosen)
INHERIT_PROBABILITY = 0.7  # of taking a parameter that the draft lacks from a trial on the front (chosen)
LOSS_FEATURES = 2  # features computed from the loss; the costs follow


class DraftSampler(BaseSampler):
    """Propose, of all plans in the draft, the plan with the largest expected gain of hypervolume.

    The draft is a study `<name>-draft` in the same storage, with many cheap trials. An objective that both studies have
    under one metric name is known for every plan. The other objectives are predicted by Bayesian ridge regression,
    fitted to the trained trials; its features are the draft's first value and, scaled down, the known objectives.
    For a trial that early stopping ended, its final values are extrapolated from those at the check. The gain is the
    mean, over random thresholds of the known objectives, of the expected improvement on the best trial that is within
    the threshold and meets the limits, times the probability that the plan meets the limits that are known only after
    training. Improvements count only above the middle between the teacher and a network that answers all inputs alike.
    If there is no draft, or none or all of the objectives are known, NSGA-II samples the trials.

    The sampler's state is in the storage alone, so any number of workers may share a study. A plan that another worker
    is training counts as trained, with its predicted values.

    Parameters
    ----------
    seed
        Seed of the choice between equally good plans, and of NSGA-II.

    References
    ----------
    Emmerich et al. 2006, IEEE Trans. Evolutionary Computation 10(4): expected improvement of the hypervolume.
    Gardner et al. 2014, ICML, §3: expected improvement under constraints as expensive as the objectives.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._fallback = NSGAIISampler(seed=seed)
        self._random = RandomSampler(seed=seed)
        self._draft: _Draft | None = None

    def reseed_rng(self) -> None:
        """Reseed the random generators, as Optuna requires of a sampler that runs in several threads."""
        self._rng = np.random.default_rng()
        self._fallback.reseed_rng()
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters of the draft."""
        if self._draft is None:
            return self._fallback.infer_relative_search_space(study, trial)
        return self._draft.trials[0].distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the plan with the largest expected gain."""
        if (draft := self._draft) is None:
            return self._fallback.sample_relative(study, trial, search_space)
        data = _observations(study, draft)
        free = np.flatnonzero(~data.taken)
        if not len(free):  # the draft is exhausted
            return self._mutate(study, trial, search_space)
        gains = _acquisition(data, free, self._rng)
        best = free[np.flatnonzero(gains >= gains.max() - 1e-12)]
        return dict(draft.trials[int(self._rng.choice(best))].params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - Optuna's signature
        """Return the value of a trial on the front, or a random value."""
        if self._draft is None:
            return self._fallback.sample_independent(study, trial, param_name, param_distribution)
        front = [other for other in study.best_trials if param_name in other.params]
        values = [other.params[param_name] for other in front if other.distributions[param_name] == param_distribution]
        if values and self._rng.random() < INHERIT_PROBABILITY:
            return values[int(self._rng.integers(len(values)))]
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Read the draft, once per trial, and notify NSGA-II."""
        self._draft = _read_draft(study)
        self._fallback.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Notify NSGA-II."""
        self._fallback.after_trial(study, trial, state, values)

    def _mutate(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return a member of the front with about two parameters redrawn, or a random plan if the front is empty."""
        members = [member.params for member in study.best_trials if search_space.keys() <= member.params.keys()]
        parent = members[int(self._rng.integers(len(members)))] if members else {}
        kept = {name for name in search_space if name in parent and self._rng.random() * len(search_space) >= REDRAWN}
        return {
            name: parent[name] if name in kept else self._random.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }


class _Observations(NamedTuple):
    """The draft's N plans and the results of the main study; all objectives are signed so that smaller is better.

    Attributes
    ----------
    features
        Features of the regression, shape (N, F).
    costs
        Known objectives, in logarithms if they are positive, shape (N, C).
    taken
        Whether the plan is trained, running, or given up, shape (N,).
    trained, outcomes
        Indices of the trained plans, shape (T,), and the measured values of their predicted objectives, shape (T, L).
    excess
        By how much the trained plans exceed each limit, zero or less if they meet it, shape (T, M).
    stopped, extrapolated
        Indices of the plans that early stopping ended, shape (S,), and their predicted objectives, extrapolated to
        the end of training, shape (S, L).
    depends_on_training
        Whether training changes a predicted objective; if not, it is a cost that the draft lacks, shape (L,).
    floor
        `middle_value` of the predicted objectives, shape (L,).
    pending
        Indices of the plans that are being trained.
    others
        Known and predicted objectives of the O trained trials that meet the limits and are not in the draft, shape
        (O, C + L).
    """

    features: np.ndarray
    costs: np.ndarray
    taken: np.ndarray
    trained: np.ndarray
    outcomes: np.ndarray
    excess: np.ndarray
    stopped: np.ndarray
    extrapolated: np.ndarray
    depends_on_training: np.ndarray
    floor: np.ndarray
    pending: np.ndarray
    others: np.ndarray


class _Draft(NamedTuple):
    names: list[str]
    trials: list[FrozenTrial]


def _read_draft(study: Study) -> _Draft | None:
    """Return the draft's metric names and trials; None unless some objectives are known and some are not."""
    draft = draft_of(study)
    trials = draft.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if draft is not None else []
    if draft is None or not trials:
        return None
    names = metric_names(draft)
    shared = set(metric_names(study)) & set(names[1:])
    return _Draft(names, trials) if shared and len(shared) < len(study.directions) else None


def _observations(study: Study, draft: _Draft) -> _Observations:
    names, drafted = draft
    objectives = metric_names(study)
    signs = np.array([-1.0 if direction.name == "MAXIMIZE" else 1.0 for direction in study.directions])
    known = [at for at, name in enumerate(objectives) if name in names[1:]]
    predicted = [at for at in range(len(signs)) if at not in known]
    values = np.array([trial.values for trial in drafted])
    columns = [names.index(objectives[at]) for at in known]
    costs = _to_log(values[:, columns]) * signs[known]
    loss = np.maximum(values[:, 0], MIN_LOSS)
    params = list(drafted[0].params)
    index_of = {choices_in(trial, params): index for index, trial in enumerate(drafted)}
    taken = np.zeros(len(drafted), dtype=bool)
    trained, outcomes, excess, checks, stopped, stopped_checks, pending, others = [], [], [], [], [], [], [], []
    measured_at_check: set[str] = set()
    limits = sorted({limit for trial in study.get_trials(deepcopy=False) for limit in trial.constraints})
    for trial in study.get_trials(deepcopy=False):
        index = index_of.get(choices_in(trial, params))
        if index is not None and (trial.state.is_finished() or trial.state == TrialState.RUNNING):
            taken[index] = True
            if trial.state == TrialState.RUNNING:
                pending.append(index)
            measured_at_check |= trial.user_attrs.get(EARLY_CHECK, {}).get("values", {}).keys()
            check = _at_check(trial, objectives, predicted) * np.array([1, *signs[predicted]])
            if STOPPED in trial.user_attrs:
                stopped.append(index)
                stopped_checks.append(check)
        if trial.state == TrialState.COMPLETE:
            signed = np.array(trial.values) * signs
            if index is not None:
                trained.append(index)
                outcomes.append(signed[predicted])
                excess.append([trial.constraints.get(limit, 0.0) for limit in limits])
                checks.append(check)
            elif max(trial.constraints.values(), default=0.0) <= 0:
                others.append([*_to_log(np.array(trial.values)[None, known])[0] * signs[known], *signed[predicted]])
    final = np.array(outcomes).reshape(-1, len(predicted))
    shape = -1, 1 + len(predicted)
    extrapolated = _extrapolate(np.array(checks).reshape(shape), final, np.array(stopped_checks).reshape(shape))
    usable = np.isfinite(extrapolated).all(1)
    return _Observations(
        features=np.column_stack([np.log(loss), np.sqrt(loss), costs]),
        costs=costs,
        taken=taken,
        trained=np.array(trained, dtype=int),
        outcomes=final,
        excess=np.array(excess).reshape(len(excess), len(limits)),
        stopped=np.array(stopped, dtype=int)[usable],
        extrapolated=extrapolated[usable],
        depends_on_training=np.array([not measured_at_check or str(at) in measured_at_check for at in predicted]),
        floor=signs[predicted] * np.array([middle_value(study, objectives[at], signs[at]) for at in predicted]),
        pending=np.array(pending, dtype=int),
        others=np.array(others).reshape(len(others), len(known) + len(predicted)),
    )


def _at_check(trial: FrozenTrial, objectives: list[str], predicted: list[int]) -> np.ndarray:
    """Return a trial's epochs and its predicted objectives at the check; NaN where a value is missing."""
    check, before = trial.user_attrs.get(EARLY_CHECK, {}), trial.user_attrs.get(VALUES, {})
    values_at_check = check.get("values", {})
    values = (values_at_check.get(str(at), before.get(objectives[at], np.nan)) for at in predicted)
    return np.array([check.get("epochs", np.nan), *values])


def _extrapolate(checks: np.ndarray, final: np.ndarray, stopped_checks: np.ndarray) -> np.ndarray:
    """Return the values that stopped trials would have reached at the end of their training.

    They are predicted from the values at the check, since the distance of a poor network from a good one is larger
    after a quarter of the training than at its end. Values are NaN if too few trials of that length were trained.
    """
    extrapolated = np.full((len(stopped_checks), final.shape[1]), np.nan)
    for epochs in np.unique(stopped_checks[:, 0][np.isfinite(stopped_checks).all(1)]):
        same_length = (checks[:, 0] == epochs) & np.isfinite(checks).all(1)
        rows = (stopped_checks[:, 0] == epochs) & np.isfinite(stopped_checks).all(1)
        for column in range(final.shape[1]) if same_length.sum() >= MIN_REGRESSION_TRIALS else ():
            model = BayesianRidge().fit(checks[same_length, 1 + column, None], final[same_length, column])
            extrapolated[rows, column] = model.predict(stopped_checks[rows, 1 + column, None])
    return extrapolated


def _to_log(values: np.ndarray) -> np.ndarray:
    """Return the logarithms of columns that are positive, because fronts of costs span factors; keep the others."""
    scaled: np.ndarray = np.where((values > 0).all(0), np.log(np.maximum(values, 1e-300)), values)
    return scaled


def _acquisition(data: _Observations, free: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the logarithm of each free plan's expected gain times its probability of meeting the limits.

    As long as no trial meets the limits, only the probability counts; before there are enough trained trials for a
    regression, plans are ranked by how few plans of the draft are better.
    """
    low, high = data.costs.min(0), data.costs.max(0)
    thresholds = low + (high - low) * rng.random((THRESHOLDS, len(low)))
    gains, log_feasibility = np.zeros(len(free)), _log_feasibility(data, free)
    likely_feasible = _log_feasibility(data, data.pending) > np.log(0.5)
    feasible = np.concatenate([(data.excess <= 0).all(1), likely_feasible, np.ones(len(data.others), dtype=bool)])
    for column in range(data.outcomes.shape[1]) if len(data.trained) >= MIN_REGRESSION_TRIALS else ():
        targets = np.concatenate([data.outcomes[:, column], data.extrapolated[:, column]])
        rows = np.concatenate([data.trained, data.stopped])
        mean, deviation = _predict(data.features, rows, targets, depends_on_training=data.depends_on_training[column])
        count = data.costs.shape[1]
        costs = np.vstack([data.costs[data.trained], data.costs[data.pending], data.others[:, :count]])
        values = np.concatenate([data.outcomes[:, column], mean[data.pending], data.others[:, count + column]])
        scale = max(float(np.ptp(values)), 1e-12)
        values = np.minimum(values, data.floor[column])
        if not feasible.any():
            return log_feasibility
        inside = feasible & (costs[None] <= thresholds[:, None] + 1e-9).all(2)
        best = np.where(inside, values, values.max()).min(1)
        allowed = (data.costs[free][None] <= thresholds[:, None] + 1e-9).all(2)
        below = best[:, None] - mean[free]
        ratio = below / deviation[free]
        improvement = below * norm.cdf(ratio) + deviation[free] * norm.pdf(ratio)
        gains += (allowed * improvement).mean(0) / scale
    if gains.any():
        return np.log(np.maximum(gains, 1e-300)) + log_feasibility  # type: ignore[no-any-return]
    worse_loss = data.features[free, 0][None] >= data.features[free, 0][:, None]
    rank: np.ndarray = (worse_loss | (data.costs[free][None] > data.costs[free][:, None]).any(2)).mean(1)
    return rank


def _log_feasibility(data: _Observations, plans: np.ndarray) -> np.ndarray:
    """Return the logarithm of the probability that plans meet every limit that some trained network exceeded."""
    log_feasibility: np.ndarray = np.zeros(len(plans))
    for excess in data.excess.T[(data.excess > 0).any(0)]:
        mean, deviation = _predict(data.features, data.trained, excess, depends_on_training=True)
        log_feasibility += norm.logcdf(-mean[plans] / deviation[plans])
    return log_feasibility


def _predict(
    features: np.ndarray, rows: np.ndarray, targets: np.ndarray, *, depends_on_training: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictive mean and standard deviation for every plan, from a regression on the plans in `rows`."""
    normal = (features - features.mean(0)) / (features.std(0) + 1e-9)
    normal[:, LOSS_FEATURES:] *= COST_SCALE if depends_on_training else 1.0
    center, spread = targets.mean(), targets.std() + 1e-9
    model = BayesianRidge().fit(normal[rows], (targets - center) / spread)
    mean, deviation = model.predict(normal, return_std=True)
    return center + spread * mean, np.maximum(spread * deviation, 1e-9)
