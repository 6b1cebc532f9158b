"""A sampler for studies whose costs are known and whose trials are dear: it proposes from a draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import TrialState
from scipy.stats import norm
from sklearn.linear_model import BayesianRidge

from search.proposals.draft_records import LEAST_LOSS, choices_in, draft_of, metric_names, plausible
from search.study.records import RUNG, STOPPED, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

THRESHOLDS = 256  # costs at which the expected improvement of a candidate is computed
REGRESSION_TRIALS = 4  # trained trials, from which the proxy loss is corrected by what training gave
COST_SCALE = 0.1  # of costs beside the proxy loss in the regression: on the front one goes with the other (fitted)
CHANGED = 2  # parameters of a plan that are drawn anew where the draft is used up
INHERITED = 0.7  # how often a parameter that the draft lacks is taken from a trial of the front
LOSS_FEATURES = 2  # features that come from the loss; the costs follow


class DraftSampler(BaseSampler):
    """Propose, of all plans in the draft, the one with the largest expected gain of hypervolume.

    The draft is a study `<name>-draft` in the same storage, whose trials are cheap to have and many. An objective that
    both studies have under one metric name is known of every plan; the others are learned from the trials that were
    trained, by a Bayesian regression on the draft's first value and, with less belief, the known ones. Trials that were
    stopped at a rung count with what trials of their kind ended with. The gain is the mean, over thresholds of the
    known objectives, of the expected improvement on the best that is within the threshold and holds the limits, times
    the probability that the plan holds those limits that are known after training alone.
    Where there is no draft, or nothing is known or all of it, trials are sampled by NSGA-II.

    All that it goes by is in the storage: any number of workers may share a study. What other workers are training
    counts as trained, with the value that is expected of it.

    Parameters
    ----------
    seed
        Of the choice between what is equally good, and of NSGA-II.

    References
    ----------
    Emmerich et al. 2006, IEEE Trans. Evolutionary Computation 10(4): expected improvement of the hypervolume.
    Gardner et al. 2014, ICML, §3: expected improvement under limits that are as dear to know.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._dice = np.random.default_rng(seed)
        self._without = NSGAIISampler(seed=seed)
        self._random = RandomSampler(seed=seed)
        self._draft: _Drafted | None = None

    def reseed_rng(self) -> None:
        """Take other random numbers, as Optuna asks of a sampler that runs in several threads."""
        self._dice = np.random.default_rng()
        self._without.reseed_rng()
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that the draft has."""
        if self._draft is None:
            return self._without.infer_relative_search_space(study, trial)
        return self._draft.trials[0].distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the plan that promises most."""
        draft = self._draft
        if draft is None:
            return self._without.sample_relative(study, trial, search_space)
        table = _table(study, draft)
        free = np.flatnonzero(~table.taken & table.plausible)
        if not len(free):  # all of it is trained
            return self._changed(study, trial, search_space)
        gains = _gains(table, free, self._dice)
        best = free[np.flatnonzero(gains >= gains.max() - 1e-12)]
        return dict(draft.trials[int(self._dice.choice(best))].params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - Optuna's signature
        """Take a value that the front has, or any."""
        if self._draft is None:
            return self._without.sample_independent(study, trial, param_name, param_distribution)
        front = [other for other in study.best_trials if param_name in other.params]
        held = [other.params[param_name] for other in front if other.distributions[param_name] == param_distribution]
        if held and self._dice.random() < INHERITED:
            return held[int(self._dice.integers(len(held)))]
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Read the draft, once a trial, and tell NSGA-II."""
        self._draft = _drafted(study)
        self._without.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell NSGA-II."""
        self._without.after_trial(study, trial, state, values)

    def _changed(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return a member of the front, if there is one, with about two parameters drawn anew."""
        members = [member.params for member in study.best_trials if search_space.keys() <= member.params.keys()]
        parent = members[int(self._dice.integers(len(members)))] if members else {}
        kept = {name for name in search_space if name in parent and self._dice.random() * len(search_space) >= CHANGED}
        return {
            name: parent[name] if name in kept else self._random.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }


class _Table(NamedTuple):
    """The draft's plans, N of them, and what of them is trained.

    Attributes
    ----------
    features
        What the learned objectives are told from, shape (N, F).
    costs
        Known objectives, all to be small, on logarithmic scales where they are positive, shape (N, C).
    plausible
        Whether a plan can be trained to something worth having, shape (N,).
    taken
        Whether a plan is trained, under way, or given up, shape (N,).
    trained
        Which plans have values, shape (T,), and
    learned
        the learned objectives of these, all to be small, shape (T, L), and
    excess
        by how much these miss each limit, zero or less where it holds, shape (T, M).
    stopped
        Which plans were stopped at a rung, shape (S,), and
    foretold
        the learned objectives that are expected of these, shape (S, L).
    by_loss
        Which learned objectives training changes, and the others are costs that the draft does not know, shape (L,).
    pending
        Which plans are under way.
    others
        Costs and learned objectives of trained trials that are not in the draft and hold the limits, shape (O, C + L).
    """

    features: np.ndarray
    costs: np.ndarray
    plausible: np.ndarray
    taken: np.ndarray
    trained: np.ndarray
    learned: np.ndarray
    excess: np.ndarray
    stopped: np.ndarray
    foretold: np.ndarray
    by_loss: np.ndarray
    pending: np.ndarray
    others: np.ndarray


class _Drafted(NamedTuple):
    names: list[str]
    trials: list[FrozenTrial]


def _drafted(study: Study) -> _Drafted | None:
    """Return the draft's metric names and trials if something is known and something is to be learned."""
    draft = draft_of(study)
    trials = draft.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if draft is not None else []
    if draft is None or not trials:
        return None
    names = metric_names(draft)
    shared = set(metric_names(study)) & set(names[1:])
    return _Drafted(names, trials) if shared and len(shared) < len(study.directions) else None


def _table(study: Study, drafted: _Drafted) -> _Table:
    names, draft = drafted
    objectives = metric_names(study)
    signs = np.array([-1.0 if direction.name == "MAXIMIZE" else 1.0 for direction in study.directions])
    known = [at for at, name in enumerate(objectives) if name in names[1:]]
    learned = [at for at in range(len(signs)) if at not in known]
    values = np.array([trial.values for trial in draft])
    columns = [names.index(objectives[at]) for at in known]
    costs = _scaled(values[:, columns]) * signs[known]
    loss = np.maximum(values[:, 0], LEAST_LOSS)
    own = list(draft[0].params)
    place = {choices_in(trial, own): at for at, trial in enumerate(draft)}
    taken = np.zeros(len(draft), dtype=bool)
    trained, outcomes, excess, rungs, stopped, reached, pending, others = [], [], [], [], [], [], [], []
    seen: set[str] = set()
    limits = sorted({limit for trial in study.get_trials(deepcopy=False) for limit in trial.constraints})
    for trial in study.get_trials(deepcopy=False):
        at = place.get(choices_in(trial, own))
        if at is not None and (trial.state.is_finished() or trial.state == TrialState.RUNNING):
            taken[at] = True
            if trial.state == TrialState.RUNNING:
                pending.append(at)
            seen |= trial.user_attrs.get(RUNG, {}).get("values", {}).keys()
            rung = _rung(trial, objectives, learned) * np.array([1, *signs[learned]])
            if STOPPED in trial.user_attrs:
                stopped.append(at)
                reached.append(rung)
        if trial.state == TrialState.COMPLETE:
            its = np.array(trial.values) * signs
            if at is not None:
                trained.append(at)
                outcomes.append(its[learned])
                excess.append([trial.constraints.get(limit, 0.0) for limit in limits])
                rungs.append(rung)
            elif max(trial.constraints.values(), default=0.0) <= 0:
                others.append([*_scaled(np.array(trial.values)[None, known])[0] * signs[known], *its[learned]])
    ended = np.array(outcomes).reshape(-1, len(learned))
    shape = -1, 1 + len(learned)
    foretold = _foretold(np.array(rungs).reshape(shape), ended, np.array(reached).reshape(shape))
    told = np.isfinite(foretold).all(1)
    return _Table(
        features=np.column_stack([np.log(loss), np.sqrt(loss), costs]),
        costs=costs,
        plausible=plausible(values[:, 0]),
        taken=taken,
        trained=np.array(trained, dtype=int),
        learned=ended,
        excess=np.array(excess).reshape(len(excess), len(limits)),
        stopped=np.array(stopped, dtype=int)[told],
        foretold=foretold[told],
        by_loss=np.array([not seen or str(at) in seen for at in learned]),
        pending=np.array(pending, dtype=int),
        others=np.array(others).reshape(len(others), len(known) + len(learned)),
    )


def _rung(trial: FrozenTrial, objectives: list[str], learned: list[int]) -> np.ndarray:
    """Return the epochs of a training and what the learned objectives were at its rung, NaN what is not known."""
    rung, before = trial.user_attrs.get(RUNG, {}), trial.user_attrs.get(VALUES, {})
    known = rung.get("values", {})
    values = (known.get(str(at), before.get(objectives[at], np.nan)) for at in learned)
    return np.array([rung.get("epochs", np.nan), *values])


def _foretold(rungs: np.ndarray, ended: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Return what trials would have ended with that were stopped, NaN where too few were trained as long to tell.

    A quarter into its training a network that is far behind is farther behind than it would be at the end.
    """
    told = np.full((len(reached), ended.shape[1]), np.nan)
    for epochs in np.unique(reached[:, 0][np.isfinite(reached).all(1)]):
        alike = (rungs[:, 0] == epochs) & np.isfinite(rungs).all(1)
        rows = (reached[:, 0] == epochs) & np.isfinite(reached).all(1)
        for at in range(ended.shape[1]) if alike.sum() >= REGRESSION_TRIALS else ():
            model = BayesianRidge().fit(rungs[alike, 1 + at, None], ended[alike, at])
            told[rows, at] = model.predict(reached[rows, 1 + at, None])
    return told


def _scaled(values: np.ndarray) -> np.ndarray:
    """Return logarithms of columns that are positive: a front of costs is looked at over factors."""
    scaled: np.ndarray = np.where((values > 0).all(0), np.log(np.maximum(values, 1e-300)), values)
    return scaled


def _gains(table: _Table, free: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Return logarithms: of each free plan's gain, or of how likely it first holds the limits; too early, its rank."""
    low, high = table.costs[table.plausible].min(0), table.costs[table.plausible].max(0)
    limits = low + (high - low) * dice.random((THRESHOLDS, len(low)))
    gains, holding = np.zeros(len(free)), _holding(table, free)
    hoped = _holding(table, table.pending) > np.log(0.5)
    held = np.concatenate([(table.excess <= 0).all(1), hoped, np.ones(len(table.others), dtype=bool)])
    for column in range(table.learned.shape[1]) if len(table.trained) >= REGRESSION_TRIALS else ():
        outcomes = np.concatenate([table.learned[:, column], table.foretold[:, column]])
        ended = np.concatenate([table.trained, table.stopped])
        expected, spread = _told(table.features, ended, outcomes, by_loss=table.by_loss[column])
        count = table.costs.shape[1]
        costs = np.vstack([table.costs[table.trained], table.costs[table.pending], table.others[:, :count]])
        values = np.concatenate([table.learned[:, column], expected[table.pending], table.others[:, count + column]])
        scale = max(float(np.ptp(values)), 1e-12)
        if not held.any():
            return holding
        inside = held & (costs[None] <= limits[:, None] + 1e-9).all(2)
        level = np.where(inside, values, values.max()).min(1)
        allowed = (table.costs[free][None] <= limits[:, None] + 1e-9).all(2)
        below = level[:, None] - expected[free]
        ratio = below / spread[free]
        improvement = below * norm.cdf(ratio) + spread[free] * norm.pdf(ratio)
        gains += (allowed * improvement).mean(0) / scale
    if gains.any():
        return np.log(np.maximum(gains, 1e-300)) + holding  # type: ignore[no-any-return]
    rank = (table.features[free, 0][None] >= table.features[free, 0][:, None]) | (
        table.costs[free][None] > table.costs[free][:, None]
    ).any(2)
    few: np.ndarray = rank.mean(1)
    return few


def _holding(table: _Table, free: np.ndarray) -> np.ndarray:
    """Return the logarithm of the probability that plans hold the limits that trained networks missed."""
    holding: np.ndarray = np.zeros(len(free))
    for excess in table.excess.T[(table.excess > 0).any(0)]:
        expected, spread = _told(table.features, table.trained, excess, by_loss=True)
        holding += norm.logcdf(-expected[free] / spread[free])
    return holding


def _told(
    features: np.ndarray, trained: np.ndarray, values: np.ndarray, *, by_loss: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of an objective for every plan, from those that are trained."""
    normal = (features - features.mean(0)) / (features.std(0) + 1e-9)
    normal[:, LOSS_FEATURES:] *= COST_SCALE if by_loss else 1.0
    middle, spread = values.mean(), values.std() + 1e-9
    model = BayesianRidge().fit(normal[trained], (values - middle) / spread)
    mean, deviation = model.predict(normal, return_std=True)
    return middle + spread * mean, np.maximum(spread * deviation, 1e-9)
