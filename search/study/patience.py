"""Operations on a database that wait while it cannot be reached, and that count once however often they are tried."""

from __future__ import annotations

import copy
import threading
import time
import uuid
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from search.study.console import console
from search.study.durations import duration
from search.study.errors import StorageFault, causes
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.trial import FrozenTrial
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from search.study.database_rows import QuickRDB

T = TypeVar("T")

LONGEST_OUTAGE = (
    120.0  # seconds that a run waits for its database: about as long as a server takes to fail over (chosen)
)
LONGEST_OUTAGE_AT_START = 20.0  # seconds at the start of a command, when the address may be wrong (chosen)
FIRST_PAUSE, LAST_PAUSE = 0.25, 5.0  # seconds between two attempts; the first doubles each time (chosen)
CREATED_BY = "slimfront:created_by"  # attribute of a trial: the call that created it

LIMITS = {"idle_in_transaction_session_timeout": 30_000, "lock_timeout": 40_000}  # ms, settings of PostgreSQL (chosen)

# SQLSTATE, whole or its class: no connection, too many, a deadlock, a server that stops, starts or is a standby
TEMPORARY_STATES = ("08", "40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03", "25006", "25P03")
REFUSED_FOR = ("FATAL", "password", "authentication")  # what a server answers that lets nobody in under this name
STARTING = ("starting up", "shutting down", "recovery", "not accepting", "too many", "slots are reserved")  # for now
SQLITE_BUSY, SQLITE_LOCKED = 5, 6


class Unavailable(Exception):
    """The database cannot be reached, or another process locks it; the operation may have happened or not."""


def unavailable(error: BaseException | None, *, known: bool) -> str:
    """Return in words why a database cannot be reached now; empty if the exception says something else.

    Parameters
    ----------
    error
        The exception.
    known
        Whether the database has answered before, so that its address and the user are right.
    """
    for link in causes(error):
        if isinstance(link, Unavailable):
            return str(link)
        if isinstance(link, DBAPIError):
            cause, words = link.orig, first_line(link.orig or link)
            state = str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")
            locked = getattr(cause, "sqlite_errorcode", 0) & 0xFF in {SQLITE_BUSY, SQLITE_LOCKED}
            connecting = link.statement is None and not state and not hasattr(cause, "sqlite_errorcode")
            refused = any(word in words for word in REFUSED_FOR) and not any(word in words for word in STARTING)
            lost = link.connection_invalidated or state.startswith(TEMPORARY_STATES)
            return words if locked or lost or (connecting and (known or not refused)) else ""
    return ""


class Wait:
    """The time that is spent on a database that cannot be reached: each call waits a little longer, then no more.

    Parameters
    ----------
    where
        The database, as messages name it.
    patience
        The seconds in all.
    """

    def __init__(self, where: str, patience: float) -> None:
        self._where, self._patience, self._started, self._count = where, patience, time.monotonic(), 0
        self._speaks = threading.current_thread() is threading.main_thread()  # it waits for the same database

    def __call__(self, words: str) -> None:
        """Wait; say so once, unless the second attempt succeeds.

        Raises
        ------
        StorageFault
            If it has been long enough.
        """
        waited = time.monotonic() - self._started
        if waited >= self._patience:
            raise StorageFault(
                f"the database {self._where} could not be reached for {duration(self._patience)}: {words}; all "
                "finished work is kept"
            )
        if self._count == 1 and self._speaks:
            console.print(
                f"the database {self._where} cannot be reached: {words}; waiting for it, for at most "
                f"{duration(self._patience)}"
            )
        if self._count:
            time.sleep(min(FIRST_PAUSE * 2**self._count, LAST_PAUSE, self._patience - waited))
        self._count += 1

    def over(self) -> None:
        """Say that the database answers, if it was said that it does not."""
        if self._count > 1 and self._speaks:
            console.print(f"the database answers again after {duration(time.monotonic() - self._started)}")


class Patient:
    """A storage of Optuna in a database, whose operations wait while the database cannot be reached.

    A lost connection may lose the answer to an operation that has happened, or that happens while it is tried again. So
    each is tried again in a way that it counts once: a new trial is marked by the call that creates it, and a result
    that is stored already is not an error.
    It takes the place of `RDBStorage` behind Optuna's cache.

    Parameters
    ----------
    backend
        The storage.
    where
        The database, as messages name it.
    """

    def __init__(self, backend: QuickRDB, where: str) -> None:
        self._backend, self._where = backend, where
        self._fault: StorageFault | None = None  # for which the run ends
        sqlalchemy.event.listen(backend.engine, "handle_error", _raise_unavailable)
        if backend.engine.dialect.name == "postgresql":
            backend.engine.dispose()  # those from now on have these limits
            sqlalchemy.event.listen(backend.engine, "connect", _limit)
        weakref.finalize(self, backend.engine.dispose)  # closes the connections

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the storage has
        """Return an attribute of the storage; its operations wait."""
        found = getattr(vars(self)["_backend"], name)
        return (lambda *given, **named: self._patiently(lambda _: found(*given, **named))) if callable(found) else found

    def delete_study(self, study_id: int) -> None:
        """Delete a study, unless an attempt before has done so."""

        def attempt(again: bool) -> None:  # noqa: FBT001
            try:
                self._backend.delete_study(study_id)
            except KeyError:
                if not again:
                    raise

        self._patiently(attempt)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Create a trial, unless an attempt before has done so."""
        marked = copy.copy(template_trial or create_trial(state=TrialState.RUNNING))
        mark = uuid.uuid4().hex
        marked.system_attrs = {**marked.system_attrs, CREATED_BY: mark}

        def attempt(again: bool) -> FrozenTrial:  # noqa: FBT001
            created = self._backend._created_with(study_id, CREATED_BY, mark) if again else None  # noqa: SLF001
            return created or self._backend._create_new_trial(study_id, marked)  # noqa: SLF001 - as Optuna's cache does

        return self._patiently(attempt)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set state and values, unless an attempt before has done so; return False if a trial cannot be taken.

        One worker at a time takes a trial (`search.study.queue`), so one that runs after a lost answer is taken.
        """

        def attempt(again: bool) -> bool:  # noqa: FBT001
            try:
                done = self._backend.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if not again or self._backend.get_trial(trial_id).state != state:
                    raise
                return True
            return done or (again and self._backend.get_trial(trial_id).state == state)

        return self._patiently(attempt)

    def _patiently(self, attempt: Callable[[bool], T]) -> T:
        """Return the result of the first attempt that reaches the database.

        Raises
        ------
        StorageFault
            If the database fails, or cannot be reached for long; once that happened, each operation is tried once.
        """
        wait, again = Wait(self._where, LONGEST_OUTAGE), False
        try:
            while True:
                try:
                    result = attempt(again)
                except (Unavailable, StorageInternalError, SQLAlchemyError) as error:
                    words = unavailable(error, known=True)
                    if not words:
                        raise
                    if self._fault is not None:
                        raise StorageFault(str(self._fault)) from error
                    wait(words)
                    again = True
                else:
                    wait.over()
                    return result
        except StorageFault as fault:
            self._fault = fault
            raise
        except (StorageInternalError, SQLAlchemyError) as error:
            raise failed(error, self._where) from error


def failed(error: Exception, where: str) -> StorageFault:
    """Return the fault of a database that answers, but cannot do what it should, such as one without space."""
    *_, last = causes(error)  # Optuna wraps SQLAlchemy, which wraps the driver
    return StorageFault(
        f"the database {where} failed: {type(last).__name__}: {first_line(last)}; all finished work is kept"
    )


def _limit(connection: DBAPIConnection, _: object) -> None:
    """Limit how long one process can hold up the others: one that is cut off in a transaction holds locks."""
    cursor = connection.cursor()
    for name, milliseconds in LIMITS.items():
        cursor.execute(f"SET {name} = {milliseconds}")
    cursor.close()
    connection.commit()


def _raise_unavailable(context: ExceptionContext) -> None:
    """Pass on that the database cannot be reached; Optuna would try again itself, and create trials twice.

    Raises
    ------
    Unavailable
        If it cannot.
    """
    words = unavailable(context.sqlalchemy_exception, known=True)
    if words:
        raise Unavailable(words)
