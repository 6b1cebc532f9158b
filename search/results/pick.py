"""Pick one member of the front, by number, by knee or by a sentence."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING

import numpy as np

from search.study.errors import UserError
from search.study.front import need_front
from search.study.records import VALUES
from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.spec import StudySpec

COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
SENTENCE = re.compile(r"(max|min)\s+(\w+)(?:\s+where\s+(.+))?", re.IGNORECASE)
CONDITION = re.compile(rf"(\w+)\s*(<=|>=|<|>)\s*({NUMBER})")


def pick(study: Study, spec: StudySpec, words: str) -> FrozenTrial:
    """Return the member of the front that the words mean.

    Parameters
    ----------
    study, spec
        The study.
    words
        `knee`, the number of a trial, or a sentence such as `max top1 where size_bytes<=20000 and macs<1e6`.

    Raises
    ------
    UserError
        If they mean nothing, or no member.
    """
    members = need_front(study)
    words = words.strip()
    if words == "knee":
        return members[knee([trial.values for trial in members], _signs(study))]
    if words.isdigit():
        chosen = [trial for trial in members if trial.number == int(words)]
        if not chosen:
            numbers = ", ".join(str(trial.number) for trial in members)
            raise UserError(f"trial {words} is not on the front; its members are {numbers}")
        return chosen[0]
    return _by_sentence(members, spec, words)


def _by_sentence(members: list[FrozenTrial], spec: StudySpec, words: str) -> FrozenTrial:
    match = SENTENCE.fullmatch(words)
    if match is None:
        raise UserError(
            f"a pick must be 'knee', a number, or 'max NAME where NAME<=VALUE [and ...]', but got {words!r}"
        )
    which, name, conditions = match.groups()
    known = [objective.name for objective in spec.measured]
    chosen = members
    for condition in re.split(r"\s+and\s+", conditions) if conditions else []:
        parts = CONDITION.fullmatch(condition.strip())
        if parts is None:
            raise UserError(f"a condition must be like size_bytes<=20000, but got {condition!r}")
        left, compare, bound = parts.groups()
        if left not in known:
            raise UserError(unknown_name("objective", left, known))
        kept = [x for x in chosen if COMPARE[compare](x.user_attrs[VALUES][left], float(bound))]
        if not kept:
            near = min(chosen, key=lambda x: abs(x.user_attrs[VALUES][left] - float(bound)))
            raise UserError(
                f"no member of the front has {condition.strip()}; the nearest is trial {near.number} with {left} "
                f"{near.user_attrs[VALUES][left]:g}"
            )
        chosen = kept
    if name not in known:
        raise UserError(unknown_name("objective", name, known))
    best = max if which.lower() == "max" else min
    return best(chosen, key=lambda trial: trial.user_attrs[VALUES][name])


def knee(values: Sequence[Sequence[float]], signs: Sequence[int]) -> int:
    """Return the index of the point nearest to the ideal one, every objective scaled to [0, 1] over the front.

    Costs that span more than a factor of ten are scaled logarithmically, or all of the cheap end would look the same.

    Parameters
    ----------
    values
        One row a point.
    signs
        1 for an objective to minimize, -1 for one to maximize.
    """
    table = np.asarray(values, dtype=float)
    for column in range(table.shape[1]):
        if table[:, column].min() > 0 and table[:, column].max() > 10 * table[:, column].min():
            table[:, column] = np.log(table[:, column])
    table *= np.asarray(signs)
    low, high = table.min(0), table.max(0)
    scaled = (table - low) / np.where(high > low, high - low, 1)
    return int(np.linalg.norm(scaled, axis=1).argmin())


def _signs(study: Study) -> list[int]:
    return [-1 if direction.name == "MAXIMIZE" else 1 for direction in study.directions]
