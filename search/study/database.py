"""Trials in a database: SQLite, or a server such as PostgreSQL that workers on many machines share."""

from __future__ import annotations

import pkgutil
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from search.study.database_rows import QuickRDB
from search.study.errors import UserError, causes
from search.study.passwords import is_ambiguous, shown
from search.study.patience import LONGEST_OUTAGE_AT_START, Patient, Wait, failed, unavailable
from search.study.quick_database import QuickCache
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import URL

POSTGRESQL = ("postgresql", "postgres")  # what users type; SQLAlchemy names a driver, too
DRIVER = "postgresql+psycopg"  # of the extra `postgresql`
# seconds, and ms in the last one, after which a server that cannot be reached counts as lost (chosen)
NOTICE = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
}
EXISTS = ("42P07", "42710", "23505")  # SQLSTATE of a table, a type and a row that exist
MOST_COLLISIONS, LONGEST_PAUSE = 50, 0.2  # with processes that create the same tables; seconds between two attempts


def database_storage(text: str, *, create: bool) -> BaseStorage:
    """Return the storage in the database at a URL, whose operations wait while it cannot be reached.

    Parameters
    ----------
    text
        The URL.
    create
        Whether a file of SQLite is created if it does not exist; missing tables always are.

    Raises
    ------
    UserError
        If the URL cannot be read, the driver of the database is not installed, or there is no file.
    StorageFault
        If the database cannot be reached for long.
    """
    url = database_url(text)
    where = shown(text)
    if is_ambiguous(text):
        raise UserError(f"an @ in the password of a storage URL must be written as %40, but got {where}")
    if not create and not _exists(url):
        raise UserError(f"no study in {where}; start it with: slimfront run")
    wait, collisions = Wait(where, LONGEST_OUTAGE_AT_START), 0
    while True:
        try:
            backend = _opened(url, where)
        except (StorageInternalError, SQLAlchemyError) as error:
            words = unavailable(error, known=False)
            if words:
                wait(words)
            elif _created_meanwhile(error) and collisions < MOST_COLLISIONS:
                collisions += 1
                time.sleep(random.uniform(0.0, LONGEST_PAUSE))  # noqa: S311 - the other processes go on
            else:
                raise failed(error, where) from error
        else:
            wait.over()
            return backend


def _opened(url: URL, where: str) -> BaseStorage:
    """Return the storage, with its tables.

    Raises
    ------
    UserError
        If the driver of the database is unknown, or not installed.
    """
    is_postgresql = url.drivername.startswith(POSTGRESQL)
    notice = {name: value for name, value in NOTICE.items() if is_postgresql and name not in url.query}
    options: dict[str, Any] = {"connect_args": notice}
    try:
        if url.drivername == DRIVER:  # the only driver that we can keep from waiting for ever
            options = {"creator": pkgutil.resolve_name("search.study.frozen_server:connector")(url, notice)}
        backend = QuickRDB.of(url, options)
    except ImportError as error:
        missing = 'pip install "slimfront[postgresql]"' if is_postgresql else f"install the driver of {url.drivername}"
        *_, cause = causes(error)
        raise UserError(
            f"the storage {where} needs a package that is missing ({first_line(cause)}): {missing}"
        ) from error
    except NoSuchModuleError as error:
        raise UserError(
            "--storage must name a database that SQLAlchemy knows, such as postgresql://user@host/name or "
            f"sqlite:///file.db, but got {where}"
        ) from error
    return QuickCache(cast("QuickRDB", Patient(backend, where)))


def _exists(url: URL) -> bool:
    """Return whether there is a database; without asking a server."""
    in_file = url.drivername.startswith("sqlite") and url.database and not url.database.startswith((":", "file:"))
    return not in_file or Path(str(url.database)).exists()


def _created_meanwhile(error: BaseException) -> bool:
    """Return whether an error says that another process creates the same tables at this moment."""
    for cause in causes(error):
        if isinstance(cause, DBAPIError):
            state = getattr(cause.orig, "sqlstate", None) or getattr(cause.orig, "pgcode", None)
            return isinstance(cause, IntegrityError) or state in EXISTS or "already exists" in str(cause.orig)
    return False


def database_url(text: str) -> URL:
    """Return the URL that a user typed, with the driver that the extra `postgresql` installs where none is named.

    Raises
    ------
    UserError
        If it is not a URL.
    """
    try:
        url = sqlalchemy.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UserError(
            "--storage must be a URL such as postgresql://user@host/name, sqlite:///file.db or journal://file.log, but "
            f"got {text.partition(':')[0]}:..."  # the rest may hold a password
        ) from error
    return url.set(drivername=DRIVER) if url.drivername in POSTGRESQL else url
