"""All that the page shows of a study, as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from objectives.outputs import outputs
from objectives.trees import at
from search.proposals.proxy_correlation import prediction_report
from search.results.confirm import confirmed_with, weights_of
from search.results.file_records import failure_of, file_table, other_records
from search.results.goal import goal_note, meets_all, standings
from search.results.intervals import is_share, of_share
from search.results.page.columns import columns_of, file_values
from search.results.page.course import course
from search.results.page.eight_bits import teacher_at_8_bits
from search.results.page.plans import layers_of
from search.results.pick import pick
from search.results.tables import files_note, teacher_file_columns
from search.results.verification import record_words
from search.study.attributes import numbers_of
from search.study.machine import version_of
from search.study.records import TEACHER, VALUES
from search.study.unmet import known_limits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from optuna import Study

    from search.evaluation.context import Context
    from search.results.file_records import Member
    from search.results.page.columns import Column


ONE_ANSWER = 2  # dimensions of outputs with one answer for each example: (B, classes)
MOST_CANDIDATES = 3000  # of the table of candidates, so that the page stays small; all are in candidates.csv (chosen)
TRAINED_STATE = "trained"  # as `search.results.candidates` calls it


def facts(
    study: Study, context: Context, members: Sequence[Member], table: pd.DataFrame, folder: Path, words: str
) -> dict[str, Any]:
    """Return all that the page shows of a study.

    Parameters
    ----------
    study, context
        The study and its context.
    members
        The members of its front, with their verification records.
    table
        All candidates, as `search.results.candidates.candidates` returns them.
    folder
        The folder of the study's files.
    words
        The study as named on a command line, for the commands that the page shows.
    """
    spec, teacher = context.spec, dict(study.user_attrs[TEACHER])
    columns = columns_of(spec, members)
    examples = _examples(context)
    layers, plans = layers_of(context, {trial.number: context.plan(trial.params) for trial, _ in members})
    files = file_table(members, spec)
    beaten = set(files["number"][~files["on_front"]])
    rows = _rows(table, columns, {trial.number for trial, _ in members})
    shares = {one.name for one in spec.measured if is_share(one)} if examples else set()
    return {
        "name": spec.name,
        "goal": spec.goal,
        "seed": spec.seed,
        "runtime": spec.runtime.name,
        "words": words,
        "version": version_of("slimfront") or "",
        "columns": [asdict(column) for column in columns],
        "teacher": teacher,
        "eight_bits": teacher_at_8_bits(study, context),
        "candidates": rows[:MOST_CANDIDATES],
        "left_out": max(0, len(rows) - MOST_CANDIDATES),
        "members": {
            member.trial.number: _member(study, context, member, columns, folder)
            | {"intervals": _intervals(member, columns, shares, examples), "beaten": member.trial.number in beaten}
            for member in members
        },
        "knee": pick(study, spec, members, "knee").number if members else None,
        "limits": [
            {"key": limit.objective.name, "bound": limit.bound, "upper": limit.is_upper, "words": limit.words}
            for limit in known_limits(study, spec)
        ],
        "layers": layers,
        "plans": plans,
        "course": course(study, spec, teacher, members, columns),
        "notes": [*filter(None, (goal_note(study, spec, members), *prediction_report(study, spec).splitlines()))],
        "files": files_note(spec, members),
    }


def _examples(context: Context) -> int:
    """Return the number of validation examples if each has one answer, one class among some; else 0."""
    with torch.no_grad():
        answers = outputs(context.subject.model, at(context.subject.example, slice(1)))
    return len(context.spec.splits.validation) if isinstance(answers, Tensor) and answers.ndim == ONE_ANSWER else 0


def _intervals(
    member: Member, columns: Sequence[Column], shares: set[str], examples: int
) -> dict[str, tuple[float, float]]:
    """Return the 95% intervals of a member's shares of the validation examples, of its file where it has one."""
    values = {**numbers_of(member.trial, VALUES), **file_values(member, columns)}
    return {name: of_share(values[name], examples) for name in shares & values.keys()}


def _rows(table: pd.DataFrame, columns: Sequence[Column], front: set[int]) -> list[dict[str, Any]]:
    """Return the candidates for the table: those of the front first, then those that were trained, then the others."""
    keys = [column.key for column in columns if column.key in table]
    rows = []
    for row in table.to_dict("records"):
        values = {key: float(row[key]) for key in keys if row[key] is not None and math.isfinite(row[key])}
        kept = {name: row[name] for name in ("number", "state", "plan", "reason")}
        feasible = {"feasible": row["feasible"]} if isinstance(row["feasible"], bool) else {}
        rows.append({**kept, **feasible, "on_front": row["number"] in front, "values": values})
    return sorted(rows, key=lambda row: (not row["on_front"], row["state"] != TRAINED_STATE, row["number"]))


def _member(study: Study, context: Context, member: Member, columns: Sequence[Column], folder: Path) -> dict[str, Any]:
    """Return what the page shows of a member of the front besides its row."""
    trial, record = member
    confirmed = confirmed_with(weights_of(folder, trial), trial)
    return {
        "file": file_values(member, columns),
        "verification": record_words(record) if record else "",
        "failure": "" if record else failure_of(folder, trial, context.spec.runtime),
        "others": {
            name: record_words(other) for name, other in other_records(folder, trial, context.spec.runtime).items()
        },
        "teacher_file": teacher_file_columns([member]),
        "meets": meets_all(standings(study, context.spec, member)),
        "confirmed": {
            name: [values["mean"], values["spread"], confirmed["n"]]
            for name, values in confirmed.items()
            if isinstance(values, dict) and "mean" in values
        },
    }
