"""The journal file that holds the trials of a study."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock  # its public module lacks the base of its locks

if TYPE_CHECKING:
    from pathlib import Path

WAIT_TO_ASK_AGAIN = 0.001  # seconds between two attempts to lock; a record is written in less


class KernelLock(BaseJournalFileLock):
    """A lock of the journal that ends with its process.

    Optuna's own locks are files: one left by a killed process blocks all others for 30 s, and for ever where the path
    of the journal is relative. The operating system releases this one when its process ends, however that happens.

    Parameters
    ----------
    journal
        The file that the lock protects.
    """

    def __init__(self, journal: Path) -> None:
        self._lock = FileLock(f"{journal}.locked")

    def acquire(self) -> bool:
        """Wait until no other process or thread holds the lock, and hold it."""
        self._lock.acquire(poll_interval=WAIT_TO_ASK_AGAIN)
        return True

    def release(self) -> None:
        """Let others have the lock."""
        self._lock.release()


def journal_storage(journal: Path) -> JournalStorage:
    """Return the storage in a file, which is created if it does not exist."""
    return JournalStorage(JournalFileBackend(str(journal), KernelLock(journal)))


def cut_incomplete_record(journal: Path) -> None:
    """Remove a last record that a power cut or a full disk left incomplete; the next record would be appended to it."""
    lock = KernelLock(journal)
    lock.acquire()
    try:
        content = journal.read_bytes()
        complete = content.rfind(b"\n") + 1  # bytes
        if complete < len(content):
            os.truncate(journal, complete)
    finally:
        lock.release()
