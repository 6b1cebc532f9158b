"""Pick one member of the front: the knee, a trial by its number, or the best member under conditions."""

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

COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
SENTENCE = re.compile(r"(max|min)\s+(\w+)(?:\s+where\s+(.+))?", re.IGNORECASE)
CONDITION = re.compile(rf"(\w+)\s*(<=|>=|<|>)\s*({NUMBER})")


def pick(study: Study, spec: StudySpec, selection: str) -> FrozenTrial:
    """Return the member of the front that a selection describes.

    Parameters
    ----------
    study, spec
        The study.
    selection
        `knee`, the number of a trial, or a sentence such as `max top1 where size_bytes<=20000 and macs<1e6`.

    Raises
    ------
    UserError
        If the selection cannot be read, or no member fits it.
    """
    members = need_front(study)
    selection = selection.strip()
    if selection == "knee":
        return members[knee([trial.values for trial in members], _signs(study))]
    if selection.isdigit():
        chosen = [trial for trial in members if trial.number == int(selection)]
        if not chosen:
            numbers = ", ".join(str(trial.number) for trial in members)
            raise UserError(f"trial {selection} is not on the front; its members are {numbers}")
        return chosen[0]
    return _by_sentence(members, spec, selection)


def _by_sentence(members: list[FrozenTrial], spec: StudySpec, sentence: str) -> FrozenTrial:
    """Return the member with the largest or smallest value of an objective among those that meet all conditions."""
    match = SENTENCE.fullmatch(sentence)
    if match is None:
        raise UserError(
            "a pick must be 'knee', the number of a trial, or 'max NAME' or 'min NAME', optionally followed by "
            f"'where NAME<=VALUE [and ...]', but got {sentence!r}"
        )
    extreme, name, conditions = match.groups()
    known = [objective.name for objective in spec.measured]
    chosen = members
    for condition in re.split(r"\s+and\s+", conditions) if conditions else []:
        parts = CONDITION.fullmatch(condition.strip())
        if parts is None:
            raise UserError(f"a condition must be of the form size_bytes<=20000, but got {condition!r}")
        left, comparison, bound = parts.groups()
        if left not in known:
            raise UserError(unknown_name("objective", left, known))
        kept = [x for x in chosen if COMPARISONS[comparison](x.user_attrs[VALUES][left], float(bound))]
        if not kept:
            near = min(chosen, key=lambda x: abs(x.user_attrs[VALUES][left] - float(bound)))
            raise UserError(
                f"no member of the front has {condition.strip()}; the nearest is trial {near.number} with {left} "
                f"{near.user_attrs[VALUES][left]:g}"
            )
        chosen = kept
    if name not in known:
        raise UserError(unknown_name("objective", name, known))
    best = max if extreme.lower() == "max" else min
    return best(chosen, key=lambda trial: trial.user_attrs[VALUES][name])


def knee(values: Sequence[Sequence[float]], signs: Sequence[int]) -> int:
    """Return the index of the point nearest to the ideal point, with every objective scaled to [0, 1] over the front.

    Positive objectives that span more than a factor of ten are scaled logarithmically; otherwise all cheap points would
    look the same.

    Parameters
    ----------
    values
        One row per point, one column per objective.
    signs
        For each objective 1 to minimize, -1 to maximize.
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
    """Return for each objective -1 to maximize, 1 to minimize."""
    return [-1 if direction.name == "MAXIMIZE" else 1 for direction in study.directions]
