"""How well the draft and the cost models predicted the results of the study's own trials."""

from __future__ import annotations

import bisect
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from optuna.trial import TrialState
from scipy.stats import spearmanr

from search.proposals.draft_records import Drafted, choices_in, draft_of, table_ranks_words
from search.study.attributes import numbers_of
from search.study.history import read
from search.study.records import EPOCHS, PREDICTED, REPLAY, TABLE_RANKS, TRAINED_LOSS, UNDONE, VALUES

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.spec import StudySpec

POOR_NOTE = "; this is poor, so early stopping ends every training that is not expected to beat the others"
MIN_TRUSTED_TRIALS = 12  # trained trials of the draft; with fewer the correlation is not judged (chosen)
POOR_CORRELATION = 0.3  # rank correlation below which the proxy loss is not trusted (chosen)
BAND_TRIALS = 4  # smallest number of trials of similar cost among which ranks are compared (chosen)


class ProxyCorrelation(NamedTuple):
    """The rank correlation of losses before and after training, mean over bands of cost, and the number of trials."""

    correlation: float
    trials: int

    @property
    def poor(self) -> bool:
        """Whether enough trials show that the proxy loss predicts little of the trained loss."""
        return self.trials >= MIN_TRUSTED_TRIALS and self.correlation < POOR_CORRELATION


class PredictionError(NamedTuple):
    """Predicted against measured values of a cost: median relative error, rank correlation, number of trials."""

    error: float
    correlation: float
    trials: int


def proxy_correlation(study: Study, spec: StudySpec) -> ProxyCorrelation | None:
    """Return the proxy rank correlation, or None if too few plans of the draft were trained.

    Over all costs the correlation would show only that larger networks are better. So trials are sorted by their first
    cost into bands of at least four, and Spearman's correlation of the draft's proxy loss with the loss on
    validation examples after training is computed in each band. A metric such as top-1 would not do: where networks of
    similar cost differ by a few examples, their ranks change as much between two trainings (studies/README.md).
    Trials are only compared with those that were trained as long.
    """
    costs = [at for at, objective in enumerate(spec.objectives) if objective.is_cost]
    if not costs or all(objective.is_cost for objective in spec.objectives):
        return None
    draft = draft_of(study)
    if draft is None:
        return None
    plans = read(draft, Drafted)
    return read(study, _Trainings, plans, len(plans.trials)).correlation(costs[0])


def changed_by_training(trial: FrozenTrial) -> bool:
    """Whether a trained trial has other weights than its plan gives: it was trained, and that was not undone."""
    return trial.user_attrs.get(EPOCHS) != 0 and UNDONE not in trial.user_attrs


class _Trainings:
    """The trainings of plans of a draft that are compared with the draft, by number.

    Parameters
    ----------
    plans
        The draft.
    count
        Number of its plans; with more of them, trainings count that did not before.
    """

    def __init__(self, plans: Drafted, count: int) -> None:  # noqa: ARG002 - makes it another reader
        self._plans = plans
        self._both: list[tuple[float, FrozenTrial]] = []  # with the proxy loss
        self._known: dict[int, ProxyCorrelation | None] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Keep the trial if it is such a training."""
        if trial.state != TrialState.COMPLETE or REPLAY in trial.user_attrs or TRAINED_LOSS not in trial.user_attrs:
            return
        if not changed_by_training(trial):
            return
        drafted = self._plans.values.get(choices_in(trial, self._plans.names))
        if drafted is not None:
            bisect.insort(self._both, (drafted[0], trial), key=lambda both: both[1].number)
            self._known.clear()

    def correlation(self, cost: int) -> ProxyCorrelation | None:
        """Return the correlation in bands of one cost, over the trainings of the most common length."""
        if cost not in self._known:
            usual = Counter(trial.user_attrs.get(EPOCHS) for _, trial in self._both).most_common(1)
            points = [
                (trial.values[cost], loss, trial.user_attrs[TRAINED_LOSS])
                for loss, trial in self._both
                if trial.user_attrs.get(EPOCHS) == usual[0][0]
            ]
            count = len(points) // BAND_TRIALS
            bands = np.array_split(np.array(sorted(points)), count) if count else []
            found = [float(spearmanr(band[:, 1], band[:, 2])[0]) for band in bands if np.ptp(band, axis=0)[1:].all()]
            self._known[cost] = ProxyCorrelation(float(np.mean(found)), len(points)) if found else None
        return self._known[cost]


def is_misleading(study: Study, spec: StudySpec) -> bool:
    """Whether the proxy loss is known to predict little of the trained loss."""
    found = proxy_correlation(study, spec)
    return found is not None and found.poor


def proxy_correlation_words(found: ProxyCorrelation | None) -> str:
    """Describe the proxy rank correlation in one line."""
    if found is None:
        return "proxy rank correlation: not known yet; it needs more plans of the draft that were trained equally long"
    return (
        f"proxy rank correlation (untrained loss against trained loss, at similar cost): {found.correlation:.2f} "
        f"over {found.trials} trials{POOR_NOTE if found.poor else ''}"
    )


def prediction_report(study: Study, spec: StudySpec) -> str:
    """Describe how well the draft and the cost models predicted; empty if the study has no draft."""
    draft = draft_of(study)
    if draft is None:
        return ""
    lines = [
        f"{name} was predicted with a median error of {found.error:.1%}, rank correlation {found.correlation:.2f}, "
        f"over {found.trials} measured trials"
        for name, found in cost_prediction_errors(study).items()
    ]
    ranks = draft.user_attrs.get(TABLE_RANKS)
    table = [] if ranks is None else [f"sensitivity table: over {len(draft.trials)} plans {table_ranks_words(ranks)}"]
    return "\n".join([*table, proxy_correlation_words(proxy_correlation(study, spec)), *lines])


def cost_prediction_errors(study: Study) -> dict[str, PredictionError]:
    """Compare the predictions of every cost model with the measured values, including those of rejected trials."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    both = [(numbers_of(trial, PREDICTED), numbers_of(trial, VALUES)) for trial in finished]
    found = {}
    for name in dict.fromkeys(name for foretold, _ in both for name in foretold):
        pairs = [(foretold[name], values[name]) for foretold, values in both if name in foretold and name in values]
        if len(pairs) >= BAND_TRIALS:
            predicted, measured = np.array(pairs).T
            error = float(np.median(np.abs(predicted / measured - 1)))
            found[name] = PredictionError(error, float(spearmanr(predicted, measured)[0]), len(pairs))
    return found
