"""The file of a journal: records are appended whole or not at all, and what is left of others is set aside."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from search.study.console import console

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages.journal._file import BaseJournalFileLock

RECORD_START = b'{"op_code":'  # of every record
READ_AT_ONCE = 1 << 16  # bytes that are read at once from the end (chosen)
ASIDE = ".dropped"  # suffix of the file of what was set aside
# Names that a record of each kind has, by Optuna's number of the kind
NAMES: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {"study_name", "directions"},
            {"study_id"},
            {"study_id", "user_attr"},
            {"study_id", "system_attr"},
            {"study_id", "datetime_start"},
            {"trial_id", "param_name", "param_value_internal", "distribution"},
            {"trial_id", "state", "values"},
            {"trial_id", "step", "intermediate_value"},
            {"trial_id", "user_attr"},
            {"trial_id", "system_attr"},
        ),
    )
)


def record_of(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None if the line holds something else."""
    try:
        record = json.loads(line)
        whole = NAMES[record["op_code"]] <= record.keys() and isinstance(record["worker_id"], str)
        numbers = [record[name] for name in ("study_id", "trial_id") if name in record]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return record if whole and all(isinstance(number, int) and number >= 0 for number in numbers) else None


def salvaged(line: bytes) -> bytes:
    """Return the last part of a line that is a whole record, as after one that a killed process left unfinished."""
    start = line.rfind(RECORD_START)
    return line[start:] if start >= 0 and record_of(line[start:]) else b""


def append_whole(path: Path, lock: BaseJournalFileLock, content: bytes) -> None:
    """Append whole lines to a journal, after those that are whole.

    Raises
    ------
    OSError
        If there is no space; then nothing is appended.
    """
    lock.acquire()
    try:
        _mend_end(path)
        before = path.stat().st_size
        try:
            with path.open("ab", buffering=0) as file:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
        except BaseException:
            os.truncate(path, before)
            raise
    finally:
        lock.release()


def mend_end(path: Path, lock: BaseJournalFileLock) -> None:
    """Set aside what follows the last whole record of a journal; nobody is writing it, since the lock is held."""
    lock.acquire()
    try:
        _mend_end(path)
    finally:
        lock.release()


def _mend_end(path: Path) -> None:
    """Do what `mend_end` does; the caller holds the lock."""
    line, end = _last_line(path)
    if not line or (line.endswith(b"\n") and record_of(line)):
        return
    kept, rest = salvaged(line), b""
    start = end - len(line)
    while not kept and start > 0:  # lines of garbage
        rest = line + rest
        line, _ = _last_line(path, start)
        if record_of(line):
            line = b""
            break
        start -= len(line)
        kept = salvaged(line)
    dropped = line[: len(line) - len(kept)] + rest if kept else line + rest
    if dropped.strip():
        set_aside(path, dropped)
        console.print(
            f"the end of {path} was damaged: {len(dropped)} bytes after the last whole record are left out; they are "
            f"in {path.name}{ASIDE}"
        )
    with path.open("r+b") as file:
        file.seek(start)
        file.write(kept.rstrip(b"\n") + b"\n" if kept else b"")
        file.truncate()
        os.fsync(file.fileno())


def _last_line(path: Path, end: int | None = None) -> tuple[bytes, int]:
    """Return the last line before a position, by default the end, with its newline if it has one; and the position."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if end is None else end
        found, start = b"", end
        while start > 0 and b"\n" not in found[:-1]:
            step = min(READ_AT_ONCE, start)
            start -= step
            file.seek(start)
            found = file.read(step) + found
    return found[found[:-1].rfind(b"\n") + 1 :], end


def set_aside(path: Path, content: bytes) -> None:
    """Keep what was no record, beside the journal."""
    with path.with_name(f"{path.name}{ASIDE}").open("ab") as file:
        file.write(content if content.endswith(b"\n") else content + b"\n")
        file.flush()
        os.fsync(file.fileno())
