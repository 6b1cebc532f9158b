"""Verification records: the measurements on the exported files of the front, and the front of the files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from objectives import Metric
from search.study.attributes import numbers_of
from search.study.console import console
from search.study.files import load_or_nothing
from search.study.front import non_dominated
from search.study.records import VALUES, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from optuna.trial import FrozenTrial

    from objectives import Objective
    from search.study.outline import Named, Outline

# Names of the objectives that a file measures, besides metrics
SIZE, LATENCY, SHARE, ARENA = "size_bytes", "latency_ms", "latency_share", "arena_bytes"
MEASURED_ON_FILES = (SIZE, LATENCY, SHARE, ARENA)
FAILURE = "failure"  # key of a record of a failed verification
TIMES = ("cpu_ms", "ratio")  # keys of the latency in a record


class Member(NamedTuple):
    """A member of the front of the search.

    Attributes
    ----------
    trial
        The trial.
    record
        The verification record of its file for the study's runtime, empty if there is none.
    """

    trial: FrozenTrial
    record: dict[str, Any]


def with_records(members: Sequence[FrozenTrial], runtime: Named, folder: Path) -> list[Member]:
    """Return the trials of the front, each with the verification record of its file for a runtime."""
    return [Member(trial, read_record(record_path(folder, trial, runtime))) for trial in members]


def is_confirmed(member: Member) -> bool:
    """Whether a verified file has other weights than those of the search: `confirm` trained them."""
    return WEIGHTS in member.record and member.record[WEIGHTS] != member.trial.user_attrs.get(WEIGHTS)


def files_words(members: Sequence[Member], spec: Outline) -> str:
    """Say in short what the verified files of the front are."""
    return f"{spec.runtime.name} files" + (" of confirm" if any(map(is_confirmed, members)) else "")


def record_path(folder: Path, trial: FrozenTrial, runtime: Named) -> Path:
    """Return the path of the verification record of a member's file for a runtime."""
    return record_folder(folder, runtime) / f"{trial.number}.json"


def record_folder(folder: Path, runtime: Named) -> Path:
    """Return the folder of the verification records of files for a runtime."""
    return folder / "verified" / runtime.name


def other_records(folder: Path, trial: FrozenTrial, runtime: Named) -> dict[str, dict[str, Any]]:
    """Return the verification records of a member's files for other runtimes, by the runtime's name."""
    paths = sorted(record_folder(folder, runtime).parent.glob(f"*/{trial.number}.json"))
    found = {path.parent.name: read_record(path) for path in paths if path.parent.name != runtime.name}
    return {name: record for name, record in found.items() if record}


def failure_path(folder: Path, trial: FrozenTrial, runtime: Named) -> Path:
    """Return the path of the file that says why the verification of a member failed."""
    return record_path(folder, trial, runtime).with_suffix(".failed.json")


def failure_of(folder: Path, trial: FrozenTrial, runtime: Named) -> str:
    """Return why the verification of a member's file failed; empty if it did not, or was not tried."""
    failed = load_or_nothing(failure_path(folder, trial, runtime), {FAILURE: str}, "its reason is not shown")
    return str(failed.get(FAILURE, ""))


def read_record(path: Path) -> dict[str, Any]:
    """Return a verification record, empty if there is none; a damaged one counts as none, and a line says so."""
    again = "the file is verified again by: slimfront confirm STUDY --seeds 0"
    record = load_or_nothing(path, {"file_bytes": int, "latency": dict}, again)
    latency = record.get("latency", {})
    if record and not all(isinstance(latency.get(name), int | float) for name in TIMES):
        console.print(f"{path} is no verification record: its latency is {latency}; {again}")
        return {}
    return record


def file_table(members: Sequence[Member], spec: Outline) -> pd.DataFrame:
    """Return one row for every member whose file was verified.

    The columns are `number`, one for each objective, and `on_front`: whether no other file is at least as good in all
    objectives and better in one. Metrics, sizes and times are those measured on the file; objectives that a file does
    not measure, such as multiply-adds, have the value of the search.
    """
    names = [objective.name for objective in spec.objectives]
    rows = []
    for trial, record in members:
        if record:
            values = [file_value(record, trial, objective) for objective in spec.objectives]
            rows.append({"number": trial.number, **dict(zip(names, values, strict=True))})
    table = pd.DataFrame(rows, columns=["number", *names])
    table["on_front"] = pd.Series(non_dominated(table[names].to_numpy().tolist(), spec), dtype=bool)  # also if empty
    return table


def measuring_runtime(objective: Objective) -> Named | None:
    """Return the runtime whose files measure an objective, None if no file does."""
    runtime: Named | None = getattr(objective, "runtime", None) if objective.name in MEASURED_ON_FILES else None
    return runtime


def file_value(record: dict[str, Any], trial: FrozenTrial, objective: Objective) -> float:
    """Return the value of an objective on the file of a member, or that of the search if a file does not measure it."""
    if isinstance(objective, Metric):
        return float(record[f"{objective.name}_file"])
    measured = {SIZE: record["file_bytes"], LATENCY: record["latency"]["cpu_ms"], SHARE: record["latency"]["ratio"]}
    measured |= {ARENA: record[ARENA]} if ARENA in record else {}
    return float(measured[objective.name] if objective.name in measured else numbers_of(trial, VALUES)[objective.name])
