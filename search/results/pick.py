"""Pick one member of the front: by the goal, the knee, a number, or a sentence about the columns of its table."""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from search.results.file_records import file_value
from search.results.goal import best_for_goal
from search.results.tables import front_table
from search.study.errors import UserError
from search.study.front import non_dominated
from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.results.file_records import Member
    from search.study.outline import Outline

    Rows = dict[int, dict[Any, Any]]  # the cells of each member, by the number of its trial

COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "=": operator.eq}
PICKED_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
SENTENCE = re.compile(r"(max|min)\s+(\w+)(?:\s+where\s+(.+))?", re.IGNORECASE)
CONDITION = re.compile(r"(\w+)\s*(<=|>=|<|>|=)\s*(\S+)")
ON_FILE = "file_"  # beginning of the names of columns that are measured on the file; may be left out in a pick


def pick(study: Study, spec: Outline, members: Sequence[Member], selection: str) -> FrozenTrial:
    """Return the member of the front that a selection describes.

    Parameters
    ----------
    study, spec
        The study.
    members
        The members of its front, with the verification records of their files.
    selection
        `goal` (the member that meets goal and limits best), `knee` (the best trade-off), the number of a trial, or a
        sentence about the columns of the front's table, such as `max top1 where size_bytes<=20000 and latency_ms<=0.5`.
        A column that starts with `file_` can be named without it, unless there is a column of that name. Goal and knee
        go by what the files measured, where they are verified.

    Raises
    ------
    UserError
        If the selection cannot be read, or no member fits it.
    """
    selection = selection.strip()
    if selection == "goal":
        if not spec.limits:
            raise UserError(
                f"the study {spec.name!r} has no goal and no limits, so no member meets them best; use knee"
            )
        return best_for_goal(study, spec, members).trial
    if selection == "knee":
        return _at_the_knee(members, spec, _signs(study))
    if selection.isdigit():
        chosen = [trial for trial, _ in members if trial.number == int(selection)]
        if not chosen:
            numbers = ", ".join(str(trial.number) for trial, _ in members)
            raise UserError(f"trial {selection} is not on the front; its members are {numbers}")
        return chosen[0]
    table = front_table(study, spec, members).drop(columns="plan")
    rows = {trial.number: row for (trial, _), row in zip(members, table.to_dict("records")[1:], strict=True)}
    number = _by_sentence(rows, selection)
    return next(trial for trial, _ in members if trial.number == number)


def _at_the_knee(members: Sequence[Member], spec: Outline, signs: Sequence[int]) -> FrozenTrial:
    """Return the member at the knee of what the files measured; what the search measured counts where no file did."""
    points = [
        [file_value(record, trial, one) for one in spec.objectives] if record else [*trial.values]
        for trial, record in members
    ]
    kept = [at for at, is_kept in enumerate(non_dominated(points, spec)) if is_kept]
    return members[kept[knee([points[at] for at in kept], signs)]].trial


def _by_sentence(rows: Rows, sentence: str) -> int:
    """Return the number of the trial with the best value of a column among those that meet all conditions."""
    match = SENTENCE.fullmatch(sentence)
    if match is None:
        raise UserError(
            "a pick must be 'goal', 'knee', the number of a trial, or 'max NAME' or 'min NAME', optionally followed by "
            f"'where NAME<=VALUE [and ...]', but got {sentence!r}"
        )
    extreme, name, conditions = match.groups()
    for condition in re.split(r"\s+and\s+", conditions, flags=re.IGNORECASE) if conditions else []:
        rows = _meeting(rows, condition.strip())
    values = _numbers(rows, _column(rows, name))
    best = max if extreme.lower() == "max" else min
    return best(values, key=lambda number: values[number])


def _meeting(rows: Rows, condition: str) -> Rows:
    """Return the rows that meet a condition."""
    parts = CONDITION.fullmatch(condition)
    if parts is None:
        raise UserError(f"a condition must be of the form size_bytes<=20000, but got {condition!r}")
    column, comparison, bound = _column(rows, parts[1]), parts[2], parts[3]
    if PICKED_NUMBER.fullmatch(bound) is None:
        words = sorted({str(row[column]) for row in rows.values() if _is_word(row[column])})
        if comparison != "=" or not words:
            raise UserError(f"a condition must be of the form size_bytes<=20000, but got {condition!r}")
        kept = {number: row for number, row in rows.items() if row[column] == bound.lower()}
        if not kept:
            raise UserError(f"no member of the front has {condition}; {column} is {' or '.join(words)}")
        return kept
    values = _numbers(rows, column)
    kept = {number: rows[number] for number, value in values.items() if COMPARISONS[comparison](value, float(bound))}
    if not kept:
        near = min(values, key=lambda number: abs(values[number] - float(bound)))
        raise UserError(
            f"no member of the front has {condition}; the nearest is trial {near} with {column} {values[near]:g}"
        )
    return kept


def _column(rows: Rows, name: str) -> str:
    """Return the column that a name stands for."""
    columns = next(iter(rows.values()))
    for column in (name, f"{ON_FILE}{name}"):
        if column in columns:
            return column
    names = dict.fromkeys([*columns, *(one.removeprefix(ON_FILE) for one in columns)])
    nearest = unknown_name("column of the front", name, names)
    raise UserError(f"{nearest}; all columns: {', '.join(columns)}")


def _numbers(rows: Rows, column: str) -> dict[int, float]:
    """Return the values of a column of numbers, without the members that have none."""
    if any(_is_word(row[column]) for row in rows.values()):
        raise UserError(f"the column {column} holds words, so only a condition such as {column}=yes can use it")
    values = {number: float(row[column]) for number, row in rows.items() if row[column] not in {None, ""}}
    known = {number: value for number, value in values.items() if not math.isnan(value)}
    if not known:
        raise UserError(
            f"no member has a value in the column {column} yet; verify the files first: slimfront confirm --seeds 0"
        )
    return known


def _is_word(cell: object) -> bool:
    """Whether a cell holds a word; the numbers of trials are numbers."""
    return isinstance(cell, str) and bool(cell) and not PICKED_NUMBER.fullmatch(cell)


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
