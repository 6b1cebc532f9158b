"""Repairs a journal with garbage between its records, so that every whole record means what it meant before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from search.study.console import console
from search.study.errors import StorageFault
from search.study.files import whole
from search.study.journal_file import ASIDE, record_of, salvaged, set_aside

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages.journal._file import BaseJournalFileLock

CREATE_STUDY, CREATE_TRIAL, WAITING = 0, 4, 4  # Optuna's numbers of two kinds of records, and of a state
LINES_NAMED = 5  # lines that the message names


IMPOSSIBLE = 1000.0  # penalty of numbers that cannot be (chosen: above any sum of the others)

Record: TypeAlias = dict[str, Any]


class Gap(NamedTuple):
    """Lines between two records that hold none.

    Attributes
    ----------
    at
        Number of records before it.
    lines
        Number of these lines.
    """

    at: int
    lines: int


NO_GAP = Gap(0, 0)


def repair(path: Path, lock: BaseJournalFileLock) -> bool:
    """Set aside the lines of a journal that are no records; return False if there are none.

    Trials are numbered in the order of the records that create them. So where such a record was lost, a trial without
    result takes its place. How many were lost shows in the numbers by which later records name their trials.

    Raises
    ------
    StorageFault
        If a record was lost that creates a study.
    """
    lock.acquire()
    try:
        lines: list[bytes] = []
        numbers: list[int] = []
        gaps: list[Gap] = []
        dropped = b""
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            kept = line if record_of(line) else salvaged(line)
            if kept != line:
                numbers.append(number)
                dropped += line[: len(line) - len(kept)].rstrip(b"\n") + b"\n"
                if gaps and gaps[-1].at == len(lines):
                    gaps[-1] = Gap(len(lines), gaps[-1].lines + 1)
                else:
                    gaps.append(Gap(len(lines), 1))
            if kept:
                lines.append(kept.rstrip(b"\n") + b"\n")
        if not numbers:
            return False
        records = [json.loads(line) for line in lines]
        filled = _filled(records, gaps, path)
        set_aside(path, dropped)
        with whole(path) as unfinished:
            unfinished.write_bytes(
                b"".join(b"".join(filled.get(at, [])) + line for at, line in enumerate([*lines, b""]))
            )
    finally:
        lock.release()
    named = ", ".join(map(str, numbers[:LINES_NAMED])) + (", ..." if len(numbers) > LINES_NAMED else "")
    trials = sum(map(len, filled.values()))
    lost = f"; {trials} trial(s) whose beginning was lost are run again" if trials else ""
    console.print(
        f"the journal {path} was damaged: {len(numbers)} of {len(lines) + len(numbers)} lines held no record and are "
        f"left out ({named}){lost}; they are in {path.name}{ASIDE}"
    )
    return True


def _filled(records: list[Record], gaps: list[Gap], path: Path) -> dict[int, list[bytes]]:
    """Return the records that stand for those that created trials, by the number of the record before which they are.

    Raises
    ------
    StorageFault
        If a record was lost that creates a study.
    """
    studies = len({record["study_name"] for record in records if record["op_code"] == CREATE_STUDY})
    if any(record.get("study_id", 0) >= studies for record in records):
        raise StorageFault(
            f"the journal {path} is damaged where it creates a study; restore a copy of it, or start again with "
            "another --folder"
        )
    created = [at for at, record in enumerate(records) if record["op_code"] == CREATE_TRIAL]
    places = {}  # where each trial is created, by its number
    filled = {}  # the numbers of those that were lost, by the gap
    losses = _losses(records, gaps, created)
    for order, at in enumerate(created):
        places[order + max(after for gap, after in [(NO_GAP, 0), *losses] if gap.at <= at)] = at
    for (gap, after), (_, before) in zip(losses, [(NO_GAP, 0), *losses], strict=False):
        known = sum(at < gap.at for at in created)
        filled[gap.at] = range(known + before, known + after)
    return {at: [_stand_in(records, places, number) for number in numbers] for at, numbers in filled.items() if numbers}


def _losses(records: list[Record], gaps: list[Gap], created: list[int]) -> list[tuple[Gap, int]]:
    """Return for each gap how many records that created trials were lost before its end.

    The numbers that fit best to all records, by dynamic programming; of equal ones the smallest.
    """
    ends = [*(gap.at for gap in gaps[1:]), len(records)]
    named: dict[int, int] = {}  # the first record that names a trial
    for at, record in enumerate(records):
        if "trial_id" in record:
            named.setdefault(record["trial_id"], at)
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}  # by all that were lost so far
    for gap, end in zip(gaps, ends, strict=True):
        segment = [at for at in created if gap.at <= at < end]
        first = sum(at < gap.at for at in created)
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for lost in range(max(best) + gap.lines + 1):
            before = max((best[one][0], -one) for one in best if one <= lost <= one + gap.lines)
            fit = _fit(records, named, range(gap.at, end), dict(enumerate(segment, first + lost)), first + lost)
            following[lost] = before[0] + fit, (*best[-before[1]][1], lost)
        best = following
    _, chain = max(best.values(), key=lambda one: (one[0], -one[1][-1]))
    return list(zip(gaps, chain[1:], strict=True))


def _fit(records: list[Record], named: dict[int, int], part: range, trials: dict[int, int], first: int) -> float:
    """Return how well a part of the records fits to the numbers of the trials that it creates.

    Parameters
    ----------
    records, named
        The records, and the first one that names each trial.
    part
        The part of the records.
    trials
        Number of each trial that is created in it, and its record.
    first
        The number of the first one.
    """
    score = 0.0
    number = first
    for at in part:
        number += records[at]["op_code"] == CREATE_TRIAL
        score -= IMPOSSIBLE * (records[at].get("trial_id", -1) >= number)
    for number, at in trials.items():
        if named.get(number, at) < at:
            score -= IMPOSSIBLE
        elif number in named and records[at].get("state") != WAITING:  # its worker is usually the first to name it
            score += 1 if records[named[number]]["worker_id"] == records[at]["worker_id"] else -1
    return score


def _stand_in(records: list[Record], places: dict[int, int], number: int) -> bytes:
    """Return a record that creates a trial, in the study whose trials have such records as this one has."""
    kinds: dict[int, set[str]] = {records[at]["study_id"]: set() for at in places.values()}
    own: set[str] = set()
    for record in records:
        words = {str(record["op_code"]), *record.get("user_attr", {})}
        if record.get("trial_id") == number:
            own |= words
        elif record.get("trial_id") in places:
            kinds[records[places[record["trial_id"]]]["study_id"]] |= words
    fits = {one: (len(own & known) - len(own - known), -len(known)) for one, known in kinds.items()}
    study = max(fits, key=fits.__getitem__, default=0)
    content = {"op_code": CREATE_TRIAL, "worker_id": "repaired", "study_id": study, "datetime_start": None}
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
