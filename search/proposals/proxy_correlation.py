"""How well the draft and the cost models predicted the results of the study's own trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from optuna.trial import TrialState
from scipy.stats import spearmanr

from search.proposals.draft_records import choices_in, draft_of
from search.study.front import trained
from search.study.records import PREDICTED, VALUES

if TYPE_CHECKING:
    from optuna import Study

    from search.study.spec import StudySpec

POOR_NOTE = "; this is poor, so early stopping ends every training that is not expected to beat the others"
MIN_TRUSTED_TRIALS = 12  # trained trials of the draft; with fewer the correlation is not judged (chosen)
POOR_CORRELATION = 0.3  # rank correlation below which the proxy loss is not trusted (chosen)
BAND_TRIALS = 4  # smallest number of trials of similar cost among which ranks are compared (chosen)


class ProxyCorrelation(NamedTuple):
    """The rank correlation of proxy loss and trained result, averaged over bands of cost, and the number of trials."""

    correlation: float
    trials: int

    @property
    def poor(self) -> bool:
        """Whether enough trials show that the proxy loss predicts little of the trained result."""
        return self.trials >= MIN_TRUSTED_TRIALS and self.correlation < POOR_CORRELATION


class PredictionError(NamedTuple):
    """Predicted against measured values of a cost: median relative error, rank correlation, number of trials."""

    error: float
    correlation: float
    trials: int


def proxy_correlation(study: Study, spec: StudySpec) -> ProxyCorrelation | None:
    """Return the proxy rank correlation, or None if too few plans of the draft were trained.

    Over all costs the correlation would show only that larger networks are better. So trials are sorted by their first
    cost into bands of at least four, and Spearman's correlation of the loss with the first trained objective is
    computed in each band; the sign of a maximized objective is flipped.
    """
    trained_places = [at for at, objective in enumerate(spec.objectives) if not objective.is_cost]
    costs = [at for at, objective in enumerate(spec.objectives) if objective.is_cost]
    if not trained_places or not costs:
        return None
    sign = -1 if spec.objectives[trained_places[0]].direction == "maximize" else 1
    points = [
        (values[costs[0]], drafted[0], sign * values[trained_places[0]])
        for drafted, values in _drafted_and_trained(study)
    ]
    bands = np.array_split(np.array(sorted(points)), len(points) // BAND_TRIALS) if len(points) >= BAND_TRIALS else []
    found = [float(spearmanr(band[:, 1], band[:, 2])[0]) for band in bands if np.ptp(band, axis=0)[1:].all()]
    return ProxyCorrelation(float(np.mean(found)), len(points)) if found else None


def _drafted_and_trained(study: Study) -> list[tuple[list[float], list[float]]]:
    """Return, for every trained trial whose plan is in the draft, its values in the draft and its own."""
    draft = draft_of(study)
    drafted = draft.get_trials(deepcopy=False) if draft is not None else []
    names = list(drafted[0].params) if drafted else []
    values = {choices_in(trial, names): trial.values for trial in drafted}
    both = ((values.get(choices_in(trial, names)), trial.values) for trial in trained(study))
    return [(in_draft, own) for in_draft, own in both if in_draft is not None]


def is_misleading(study: Study, spec: StudySpec) -> bool:
    """Whether the proxy loss is known to predict little of the trained result."""
    found = proxy_correlation(study, spec)
    return found is not None and found.poor


def proxy_correlation_words(found: ProxyCorrelation | None) -> str:
    """Describe the proxy rank correlation in one line."""
    if found is None:
        return "proxy rank correlation: not known yet, because too few plans of the draft have been trained"
    return (
        f"proxy rank correlation (untrained loss against trained result, at similar cost): {found.correlation:.2f} "
        f"over {found.trials} trials{POOR_NOTE if found.poor else ''}"
    )


def prediction_report(study: Study, spec: StudySpec) -> str:
    """Describe how well the draft and the cost models predicted; empty if the study has no draft."""
    if draft_of(study) is None:
        return ""
    lines = [
        f"{name} was predicted with a median error of {found.error:.1%}, rank correlation {found.correlation:.2f}, "
        f"over {found.trials} measured trials"
        for name, found in cost_prediction_errors(study).items()
    ]
    return "\n".join([proxy_correlation_words(proxy_correlation(study, spec)), *lines])


def cost_prediction_errors(study: Study) -> dict[str, PredictionError]:
    """Compare the predictions of every cost model with the measured values, including those of rejected trials."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    both = [trial.user_attrs for trial in finished if {PREDICTED, VALUES} <= trial.user_attrs.keys()]
    found = {}
    for name in dict.fromkeys(name for attrs in both for name in attrs[PREDICTED]):
        pairs = [(attrs[PREDICTED][name], attrs[VALUES][name]) for attrs in both if name in attrs[VALUES]]
        if len(pairs) >= BAND_TRIALS:
            predicted, measured = np.array(pairs).T
            error = float(np.median(np.abs(predicted / measured - 1)))
            found[name] = PredictionError(error, float(spearmanr(predicted, measured)[0]), len(pairs))
    return found
