"""The trained trials of a study and its Pareto front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from search.study.errors import UserError
from search.study.records import EXCESS, REPLAY, STOPPED
from search.study.unmet import no_candidate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.outline import Outline


def trained(study: Study) -> list[FrozenTrial]:
    """Return the trials that were trained to the end, without replays."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if REPLAY not in trial.user_attrs]


def trained_count(study: Study) -> int:
    """Return the number of trials that were trained, to the end or until early stopping, without replays."""
    pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    stopped = [trial for trial in pruned if STOPPED in trial.user_attrs and REPLAY not in trial.user_attrs]
    return len(trained(study)) + len(stopped)


def front(study: Study) -> list[FrozenTrial]:
    """Return the feasible trained trials that no other dominates, the best in the first objective first.

    Of trials with equal values the first one is the member.
    """
    best = {trial.number: trial for trial in study.best_trials if REPLAY not in trial.user_attrs}
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    distinct = {tuple(trial.values): trial for trial in sorted(best.values(), key=lambda x: x.number, reverse=True)}
    return sorted(distinct.values(), key=lambda trial: (sign * trial.values[0], trial.number))


def non_dominated(points: Sequence[Sequence[float]], spec: Outline) -> list[bool]:
    """Return for each point whether no other is at least as good in all objectives and better in one.

    Parameters
    ----------
    points
        One row per point, with one value per objective of the study.
    spec
        The study.
    """
    signs = np.array([1 if objective.direction == "minimize" else -1 for objective in spec.objectives])
    return list(map(bool, undominated(np.array(points, dtype=float).reshape(-1, len(signs)) * signs)))


def undominated(values_NV: np.ndarray) -> np.ndarray:
    """Return for each row of values, all minimized, whether no other row is as small in all and smaller in one."""
    return np.array([not ((values_NV <= one).all(1) & (values_NV < one).any(1)).any() for one in values_NV], dtype=bool)


def need_front(study: Study, spec: Outline) -> list[FrozenTrial]:
    """Return the front.

    Raises
    ------
    UserError
        If the front is empty; the message names the limit that binds, the nearest trial, and the way out.
    """
    found = front(study)
    if found:
        return found
    finished = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(EXCESS) and REPLAY not in trial.user_attrs
    ]
    if not any(excess > 0 for trial in finished for excess in trial.user_attrs[EXCESS].values()):
        raise UserError("the study has no trained candidate yet; run it for longer: slimfront run")
    raise no_candidate(study, spec, finished)
