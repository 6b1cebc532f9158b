"""Optuna's journal storage for long studies: quick to open, and quick to ask.

The file and its records are Optuna's, and its own storage reads them. What differs is what is kept in memory, that the
parameters of a trial are written together, and a snapshot beside the file (`search.study.journal_snapshot`).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
from typing import TYPE_CHECKING, Any

from optuna.distributions import distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation

from search.study.errors import StorageFault
from search.study.journal_file import append_whole
from search.study.journal_replay import Replay
from search.study.journal_snapshot import Snapshot, load, save

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from optuna.distributions import BaseDistribution
    from optuna.storages.journal._file import BaseJournalFileLock
    from optuna.trial import TrialState

DECODED_TOGETHER = 1000  # records (chosen)
LEAST_NEW_RECORDS = 20_000  # since the last snapshot, before the next one (chosen)
NEW_SHARE = 0.1  # of all records, the same (chosen)


class QuickJournal(JournalStorage):
    """A journal storage for studies of many trials with many parameters.

    Other processes see the parameters of a running trial as soon as anything else of it is written.

    Parameters
    ----------
    path
        The file, which is created if it does not exist.
    lock
        The lock under which records are appended.
    """

    def __init__(self, path: Path, lock: BaseJournalFileLock) -> None:
        self._lines = _Lines(path, lock)
        self._unwritten: list[dict[str, Any]] = []
        self._path = path
        super().__init__(_Nothing())
        self._backend = self._lines
        self._replay = Replay(self._worker_id_prefix)
        self._replay_result = self._replay
        with self._thread_lock, _without_collection():
            snapshot = load(path)
            self._at_snapshot = 0
            if snapshot is not None:
                self._replay.restore(snapshot)
                self._lines.skip(snapshot)
                self._at_snapshot = snapshot.records
            self._sync_with_backend()
            self._save_sometimes()

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter; it is written with the next record of another kind, with all others of its trial."""
        with self._thread_lock:
            fields = {
                "trial_id": trial_id,
                "param_name": param_name,
                "param_value_internal": param_value_internal,
                "distribution": distribution_to_json(distribution),
            }
            record = self._record(JournalOperation.SET_TRIAL_PARAM, fields)
            self._replay.foresee(record)
            self._unwritten.append(record)

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial; their records are written together."""
        with self._thread_lock:
            self._unwritten += [
                self._record(JournalOperation.SET_TRIAL_USER_ATTR, {"trial_id": trial_id, "user_attr": {key: value}})
                for key, value in attributes.items()
            ]
            self._write_waiting()
            self._sync_with_backend()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial, and the values of a complete one."""
        done = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            with self._thread_lock:
                self._save_sometimes()
        return done

    def remove_session(self) -> None:
        """Write what is not written yet."""
        with self._thread_lock:
            self._write_waiting()

    def _sync_with_backend(self) -> None:
        """Read what is new; of several records that are refused, such as those of a trial that has finished, say one.

        Each is refused when it is read. One that was left would be refused in whatever is done next.
        """
        refusal = None
        while True:
            try:
                super()._sync_with_backend()
                break
            except (UpdateFinishedTrialError, KeyError) as error:
                refusal = error
        if refusal is not None:
            raise refusal

    def _record(self, op_code: int, fields: dict[str, Any]) -> dict[str, Any]:
        return {"op_code": int(op_code), "worker_id": self._replay.worker_id, **fields}

    def _write_log(self, op_code: int, extra_fields: dict[str, Any]) -> None:
        self._unwritten.append(self._record(op_code, extra_fields))
        self._write_waiting()

    def _write_waiting(self) -> None:
        records, self._unwritten = self._unwritten, []
        if records:
            self._lines.append_logs(records)

    def _save_sometimes(self) -> None:
        """Save a snapshot if many records are new since the last one."""
        new = self._lines.number - self._at_snapshot
        if new < max(LEAST_NEW_RECORDS, NEW_SHARE * self._lines.number) or self._unwritten:
            return
        self._at_snapshot = self._lines.number
        with contextlib.suppress(OSError), _without_collection():  # it saves time, and nothing is lost without it
            save(self._path, self._replay.snapshot(self._lines.number, self._lines.offset, self._lines.digest))


class _Nothing(BaseJournalBackend):
    """A backend without records, with which Optuna's storage is created."""

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:  # noqa: ARG002 - Optuna's signature
        return ()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise NotImplementedError


class _Lines(BaseJournalBackend):
    """The records of a journal, of which each is read once.

    Parameters
    ----------
    path, lock
        As of `QuickJournal`.

    Attributes
    ----------
    number, offset
        How many records were read, and their bytes.
    digest
        Of these bytes.
    """

    def __init__(self, path: Path, lock: BaseJournalFileLock) -> None:
        self._path, self._lock = path, lock
        if not path.exists():
            path.open("ab").close()
        self.number = self.offset = 0
        self.digest = hashlib.sha256()

    def skip(self, snapshot: Snapshot) -> None:
        """Go on after the records of a snapshot."""
        self.number, self.offset, self.digest = snapshot.records, snapshot.length, snapshot.digest.copy()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the records that were not read yet.

        Raises
        ------
        StorageFault
            If a record that is not the last one cannot be decoded.
        """
        assert log_number_from == self.number, "a record is read once"
        with self._path.open("rb") as file:
            file.seek(self.offset)
            # another process may be writing the last line; what follows its first part is no line of its own
            whole = itertools.takewhile(lambda line: line.endswith(b"\n"), file)
            while lines := list(itertools.islice(whole, DECODED_TOGETHER)):
                for line, record in _decoded(lines):
                    if record is None and line is lines[-1] and next(whole, None) is None:
                        return  # as with Optuna, the next record shows whether this one is still being written
                    if record is None:
                        raise StorageFault(
                            f"the journal {self._path} is damaged (line {self.number + 1} holds no record); all whole "
                            "records are kept, and the next run sets aside what is none"
                        )
                    self.number += 1
                    self.offset += len(line)
                    self.digest.update(line)
                    yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, all of them or, without space, none."""
        text = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        append_whole(self._path, self._lock, text.encode())


def _decoded(lines: list[bytes]) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield lines with their records, None for a line that holds none."""
    if all(line.startswith(b"{") and line.endswith(b"}\n") for line in lines):
        try:
            records = json.loads(b"[" + b",".join(lines) + b"]")
        except (ValueError, RecursionError):
            records = []
        if len(records) == len(lines):
            yield from zip(lines, records, strict=True)
            return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield line, record if isinstance(record, dict) else None


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Hold the garbage collector, which would look at all trials again and again while there are ever more of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
