"""The columns of the page: what is known of candidates, with units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from objectives import Metric
from search.results.file_records import ARENA, LATENCY, SIZE, TIMES, measuring_runtime
from search.results.pick import ON_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from objectives import Objective
    from search.results.file_records import Member
    from search.study.spec import StudySpec

UNIT_OF_END = {  # by the end of a name
    "_bytes": "B", "_ms": "ms", "_percent": "%", "_share": "x", "_ratio": "x", "_seconds": "s", "_mj": "mJ",
    "_db": "dB", "top1": "%", "top5": "%",
}  # fmt: skip
TITLES = {
    SIZE: "file size", LATENCY: "latency", ARENA: "RAM", "macs": "multiply-adds", "bops": "bit operations",
    "top1": "top-1", "top5": "top-5", "file_bytes": "file size", "file_latency_ms": "latency of the file",
    "latency_ratio": "latency over the teacher's", "agreement_percent": "agreement of file and network",
    "cpu_seconds": "CPU time of the trial",
}  # fmt: skip
FILE_BYTES, FILE_LATENCY, RATIO, AGREEMENT = "file_bytes", "file_latency_ms", "latency_ratio", "agreement_percent"
CPU_SECONDS = "cpu_seconds"


@dataclass(frozen=True, slots=True)
class Column:
    """What is known of candidates under one name.

    Attributes
    ----------
    key
        Its name in tables.
    title, unit
        How people read it; the unit is a base unit without prefix, empty for counts.
    better
        `high` or `low`, empty where neither is better.
    kind
        `metric` (depends on training), `cost`, or `file` (known of the exported file alone).
    is_objective
        Whether the study optimizes it.
    on_file
        The name of what the file measures of it, for `--pick`; empty where a file does not measure it.
    """

    key: str
    title: str
    unit: str
    better: str
    kind: str
    is_objective: bool
    on_file: str


def unit_of(name: str) -> str:
    """Return the unit that the end of a name states, empty for counts and names without one."""
    return next((unit for end, unit in UNIT_OF_END.items() if name.endswith(end)), "")


def title_of(name: str) -> str:
    """Return a name as people read it, without its unit."""
    if name in TITLES:
        return TITLES[name]
    unit = next((end for end in UNIT_OF_END if end.startswith("_") and name.endswith(end)), "")
    return name.removesuffix(unit).replace("_", " ")


def columns_of(spec: StudySpec, members: Iterable[Member]) -> list[Column]:
    """Return the columns of a study: what it measures, what its files measure besides, and the time of the trials."""
    objectives = {objective.name for objective in spec.objectives}
    columns = [
        Column(
            one.name, title_of(one.name), unit_of(one.name), "high" if one.direction == "maximize" else "low",
            "cost" if one.is_cost else "metric", one.name in objectives, _on_file(one, spec),
        )
        for one in spec.measured
    ]  # fmt: skip
    known = {column.on_file for column in columns}
    verified = any(record for _, record in members)
    extra = [(FILE_BYTES, "low"), (FILE_LATENCY, "low"), (RATIO, "low"), (AGREEMENT, "high")] if verified else []
    columns += [
        Column(key, title_of(key), unit_of(key), better, "file", is_objective=False, on_file=key)
        for key, better in extra
        if key not in known
    ]
    columns.append(Column(CPU_SECONDS, title_of(CPU_SECONDS), "s", "low", "search", is_objective=False, on_file=""))
    return columns


def _on_file(objective: Objective, spec: StudySpec) -> str:
    """Return the column of the front's table that holds what the file measures, empty if it measures nothing."""
    if isinstance(objective, Metric):
        return f"{ON_FILE}{objective.name}"
    if measuring_runtime(objective) != spec.runtime:
        return ""
    return {SIZE: FILE_BYTES, LATENCY: FILE_LATENCY}.get(objective.name, "")


def file_values(member: Member, columns: Iterable[Column]) -> dict[str, float]:
    """Return what the file of a member measured, by the keys of the columns; empty if it is not verified."""
    record = member.record
    if not record:
        return {}
    cpu_ms, ratio = (record["latency"][name] for name in TIMES)
    known: dict[str, float | None] = {
        f"{ON_FILE}{name.removesuffix('_file')}": value for name, value in record.items() if name.endswith("_file")
    }
    known |= {FILE_BYTES: record["file_bytes"], FILE_LATENCY: cpu_ms, RATIO: ratio}
    known |= {AGREEMENT: record["agreement_percent"]}
    found = {column.key: known.get(column.on_file) for column in columns if column.on_file}
    return {key: float(value) for key, value in found.items() if value is not None}
