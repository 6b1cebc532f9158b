"""What is proposed after the initial designs: plans of the draft in the gaps between those that were trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from search.proposals.draft_records import MIN_LOSS, Drafted, draft_of, tried
from search.proposals.refusals import any_excess, excess_of
from search.proposals.seeds import DOUBTFUL_LOSS, DOUBTFUL_SHARE
from search.proposals.sensitivity_table import safe_log
from search.study.front import undominated
from search.study.history import read
from search.study.queue import enqueue
from search.study.records import LIMIT, REASON, STOPPED

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.evaluation.context import Context
    from spaces import Plan

MARGINS = 1.0, 0.0, -1.0  # by how many times their error predictions are raised; beyond the last a trial is refused


def fill_widest_gap(study: Study, context: Context) -> None:
    """Enqueue the plan of `widest_gap`, if there is one and no trial waits; else do nothing."""
    found = None if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)) else widest_gap(study, context)
    if found is not None:
        enqueue(study, found)


def widest_gap(study: Study, context: Context) -> dict[str, float] | None:
    """Return the parameters of the plan of the draft that is farthest from all of its tried ones; None if none is left.

    Only plans of the draft's front are considered that the refitted cost models allow, and that are likely to meet
    limits on trained objectives. Plans whose answers are closer to one answer for all inputs than to the teacher's can
    be trainable, or not; they are at most a quarter of the trainings, as long as there are others. The distance is that
    of the logarithms of the costs, as a share of the front's range. As long as every training misses a limit, the plan
    with the smallest proxy loss is next instead, of the whole draft. Once no plan is left, the sampler proposes plans.
    """
    draft = draft_of(study)
    plans = read(draft, Drafted) if draft is not None else Drafted()
    if draft is None or not plans.trials:
        return None
    drafted, trials = plans.trials, tried(study, plans.names)
    results = [trials.get(choices) for choices in plans.choices]
    derived = read(draft, _Derived, len(drafted))  # other workers may have added more by now
    losses, logs_NC, front, failed = derived.arrays(drafted)
    done = np.array([trial is not None for trial in results]) | failed
    met, missed = _losses_of_trained(losses, results)
    if not done.any():
        return None
    if missed and not met:
        considered, scores = ~done, -losses
    else:
        ranges_C = np.maximum(np.ptp(logs_NC[front], axis=0), np.finfo(float).tiny)
        scores = (np.abs(logs_NC[:, None] - logs_NC[None, done]) / ranges_C).max(2).min(1)
        largest = min((loss for loss in missed if loss > max(met, default=0.0)), default=np.inf)
        considered = front & (scores > 0) & (losses < largest)
    allowed = _allowed(context, drafted, np.flatnonzero(considered), derived.plans)
    trusted = allowed[losses[allowed] <= DOUBTFUL_LOSS]
    doubtful = 1 + int((losses[done] > DOUBTFUL_LOSS).sum())
    chosen = trusted if len(trusted) and doubtful * DOUBTFUL_SHARE > 1 + int(done.sum()) else allowed
    return dict(drafted[chosen[scores[chosen].argmax()]].params) if len(chosen) else None


class _Derived:
    """What is derived from the plans of a draft, once for each number of them.

    Parameters
    ----------
    count
        The number of plans.

    Attributes
    ----------
    plans
        Plans by their positions, as far as they were considered.
    """

    def __init__(self, count: int) -> None:  # noqa: ARG002 - a reader is kept as long as its arguments are the same
        self._kept: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
        self.plans: dict[int, Plan] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Do nothing: all plans are handled together."""

    def arrays(self, drafted: list[FrozenTrial]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the proxy losses, the logarithms of the costs, which plans are on the front, and which failed."""
        if self._kept is None:
            values = np.array([[max(MIN_LOSS, trial.values[0]), *trial.values[1:]] for trial in drafted])
            failed = np.array([REASON in trial.user_attrs for trial in drafted])
            self._kept = values[:, 0], safe_log(values[:, 1:]), undominated(values), failed
        return self._kept


def _allowed(
    context: Context, drafted: list[FrozenTrial], considered: np.ndarray, plans: dict[int, Plan]
) -> np.ndarray:
    """Return the plans that the cost models allow clearly, or else probably, or else possibly."""
    if not len(considered) or not any_excess(context):
        return considered
    for at in considered:
        if at not in plans:
            plans[at] = context.plan(drafted[at].params)
    for margin in MARGINS:
        excess = excess_of(context, [plans[at] for at in considered], margin)
        if (excess <= 0).any():
            return considered[excess <= 0]
    return considered[:0]


def _losses_of_trained(losses: np.ndarray, results: list[FrozenTrial | None]) -> tuple[list[float], list[float]]:
    """Return the proxy losses of the plans whose trainings met all limits, and of those that missed one."""
    met: list[float] = []
    missed: list[float] = []
    for loss, trial in zip(losses, results, strict=True):
        stopped = trial is not None and trial.user_attrs.get(STOPPED) == LIMIT
        if trial is not None and (stopped or trial.state == TrialState.COMPLETE):
            exceeds = stopped or any(excess > 0 for excess in trial.constraints.values())
            (missed if exceeds else met).append(float(loss))
    return met, missed
