"""The trained trials of a study and its Pareto front."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from search.study.attributes import numbers_of
from search.study.errors import UserError
from search.study.history import Trained, place, read
from search.study.records import EPOCHS, EXCESS, REPLAY
from search.study.unmet import no_candidate
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.outline import Outline


def trained(study: Study) -> list[FrozenTrial]:
    """Return the trials that were trained to the end, without replays."""
    return list(read(study, Trained).trials)


def trained_count(study: Study) -> int:
    """Return the number of trials that were trained, to the end or until early stopping, without replays."""
    found = read(study, Trained)
    return len(found.trials) + found.stopped


def trained_words(study: Study) -> str:
    """Say how many candidates were trained, how many of them not to the end, and how many were measured untrained."""
    found = read(study, Trained)
    untrained = sum(trial.user_attrs.get(EPOCHS) == 0 for trial in found.trials)
    early = f", {found.stopped} of them stopped early" if found.stopped else ""
    without = f", {untrained} measured without training" if untrained else ""
    return f"{number_of(len(found.trials) - untrained + found.stopped, 'candidate')} trained{early}{without}"


class Front:
    """The feasible trained trials that no other dominates; of trials with equal values the one with the least number.

    Parameters
    ----------
    signs
        For each objective 1 if it is minimized, -1 if it is maximized.
    """

    def __init__(self, signs: tuple[int, ...]) -> None:
        self._signs = signs
        self._members: list[tuple[tuple[float, ...], FrozenTrial]] = []  # with their values, all minimized

    def add(self, trial: FrozenTrial) -> None:
        """Keep the trial if it is on the front, and drop those that it dominates."""
        if trial.state != TrialState.COMPLETE or REPLAY in trial.user_attrs:
            return
        if not all(value <= 0 for value in trial.constraints.values()):
            return
        values = tuple(sign * value for sign, value in zip(self._signs, trial.values, strict=True))
        for at, (others, other) in enumerate(self._members):
            if others == values:
                if place(trial) < place(other):
                    self._members[at] = values, trial
                return
            if all(map(operator.le, others, values)):
                return
        self._members = [
            (others, other) for others, other in self._members if not all(map(operator.le, values, others))
        ]
        self._members.append((values, trial))

    @property
    def members(self) -> list[FrozenTrial]:
        """The trials, the best in the first objective first."""
        return [trial for _, trial in sorted(self._members, key=lambda member: (member[0][0], place(member[1])))]


def front(study: Study) -> list[FrozenTrial]:
    """Return the feasible trained trials that no other dominates, the best in the first objective first.

    Of trials with equal values the first one is the member.
    """
    return read(study, Front, tuple(-1 if one.name == "MAXIMIZE" else 1 for one in study.directions)).members


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
        if numbers_of(trial, EXCESS) and REPLAY not in trial.user_attrs
    ]
    if not any(excess > 0 for trial in finished for excess in numbers_of(trial, EXCESS).values()):
        raise UserError("the study has no trained candidate yet; run it for longer: slimfront run")
    raise no_candidate(study, spec, finished)
