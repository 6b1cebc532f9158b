"""Where the trials of a study are stored: by default in a journal file in its folder."""

from __future__ import annotations

import contextlib
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from filelock import FileLock
from optuna.storages.journal._file import BaseJournalFileLock  # its public module lacks the base of its locks

from search.study.errors import UserError
from search.study.journal_file import mend_end
from search.study.journal_repair import repair
from search.study.passwords import shown, without_passwords
from search.study.quick_journal import QuickJournal

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "journal.log"  # in the folder of a study
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


def journal_storage(journal: Path) -> QuickJournal:
    """Return the storage in a file, which is created if it does not exist."""
    return QuickJournal(journal, KernelLock(journal))


def is_journal(path: Path) -> bool:
    """Return whether a file is a journal of Optuna, or empty."""
    try:
        with path.open("rb") as file:
            first = file.readline()
        return not first or "op_code" in json.loads(first)
    except (OSError, ValueError, TypeError):
        return False


def _journal_at(path: Path, *, create: bool) -> QuickJournal:
    """Return the storage in a file; what a power cut, a full disk or another program left in it is set aside."""
    lock = KernelLock(path)
    if path.exists():
        with contextlib.nullcontext() if create else contextlib.suppress(OSError):  # one may read without writing
            mend_end(path, lock)
    try:
        return journal_storage(path)
    except (ValueError, LookupError, TypeError, AssertionError):
        if not repair(path, lock):
            raise
        return journal_storage(path)


def storage_at(folder: Path, url: str | None, *, create: bool) -> BaseStorage:
    """Return the storage at the URL, or the journal in the folder of a study.

    Raises
    ------
    UserError
        If there is no journal and none is to be created.
    """
    if url is None:
        path = folder / JOURNAL
        if not create and not path.exists():
            raise UserError(
                f"no study in {folder.resolve()}; start it with slimfront run, or name its folder with --folder"
            )
        return _journal_at(path, create=create)
    if url.startswith("journal://"):
        return _journal_at(Path(url.removeprefix("journal://")), create=create)
    opened = pkgutil.resolve_name("search.study.database:database_storage")  # late: loads SQLAlchemy
    return cast("BaseStorage", opened(url, create=create))


def unusable(error: Exception, folder: Path, url: str | None) -> UserError:
    """Return the error that a storage cannot be read or written, from the exception that showed it."""
    where = shown(url) if url else folder / JOURNAL
    words = without_passwords(" ".join(str(error).split()), url)
    return UserError(
        f"the storage {where} cannot be used ({type(error).__name__}: {words[:200]}); if "
        "another process locks it, wait for that process; if it is damaged, start again with another --folder (and "
        "--storage)"
    )
