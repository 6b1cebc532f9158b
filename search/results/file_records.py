"""What the files of the front measured, and the front that is left of it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from objectives import Latency, LatencyShare, Metric, SizeBytes
from search.study.front import unbeaten
from search.study.records import VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from optuna.trial import FrozenTrial

    from objectives import Objective
    from objectives.runtimes import Runtime
    from search.study.spec import StudySpec

WEIGHTS = "weights_sha256"


class Member(NamedTuple):
    """A member of the searched front.

    Attributes
    ----------
    trial
        The trial.
    record
        The verification of its file for the study's runtime, empty where there is none.
    """

    trial: FrozenTrial
    record: dict[str, Any]


def with_records(members: Sequence[FrozenTrial], runtime: Runtime, folder: Path) -> list[Member]:
    """Return members of the searched front, each with what its file for a runtime measured."""
    return [Member(trial, read_record(record_path(folder, trial, runtime))) for trial in members]


def record_path(folder: Path, trial: FrozenTrial, runtime: Runtime) -> Path:
    """Return where the verification of a member of the front lies, of its file for a runtime."""
    return folder / "verified" / runtime.name / f"{trial.number}.json"


def read_record(path: Path) -> dict[str, Any]:
    """Return a verification, empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def outdated(record: dict[str, Any], weights: Path) -> bool:
    """Whether a verification is missing, or of other weights than those that are there."""
    return not record or (weights.exists() and record.get(WEIGHTS) != digest(weights))


def digest(weights: Path) -> str:
    """Return what tells whether a verification is of these weights."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def file_table(members: Sequence[Member], spec: StudySpec) -> pd.DataFrame:
    """Return the members whose files were verified, with what those measured.

    Columns are `number`, each objective, and `on_front`: whether no other file is at least as good in everything and
    better in something. Metrics are those of the file, bytes its size, milliseconds its time; what a file does not
    measure, such as multiply-adds, is as it was searched.
    """
    names = [objective.name for objective in spec.objectives]
    rows = []
    for trial, record in members:
        if record:
            values = [of_file(record, trial, objective) for objective in spec.objectives]
            rows.append({"number": trial.number, **dict(zip(names, values, strict=True))})
    table = pd.DataFrame(rows, columns=["number", *names])
    table["on_front"] = pd.Series(unbeaten(table[names].to_numpy().tolist(), spec), dtype=bool)  # of an empty one too
    return table


def executing(objective: Objective) -> Runtime | None:
    """Return the runtime whose file measures an objective, None where no file does."""
    if isinstance(objective, LatencyShare):
        return objective.latency.runtime
    return objective.runtime if isinstance(objective, SizeBytes | Latency) else None


def of_file(record: dict[str, Any], trial: FrozenTrial, objective: Objective) -> float:
    """Return what the file of a member measured; what a file does not measure is as it was searched."""
    if isinstance(objective, Metric):
        return float(record[f"{objective.name}_file"])
    measured = {
        "size_bytes": record["file_bytes"],
        "latency_ms": record["latency"]["cpu_ms"],
        "latency_share": record["latency"]["ratio"],
    }
    return float(measured[objective.name] if objective.name in measured else trial.user_attrs[VALUES][objective.name])
