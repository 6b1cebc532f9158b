"""Trials in a database: SQLite, or a server such as PostgreSQL that workers on many machines share."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy.exc import ArgumentError

from search.study.errors import UserError
from search.study.quick_database import QuickCache, QuickRDB

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import URL

POSTGRESQL = ("postgresql", "postgres")  # what users type; SQLAlchemy names a driver, too


def database_storage(text: str) -> BaseStorage:
    """Return the storage in the database at a URL; its tables are created if they do not exist.

    Raises
    ------
    UserError
        If the URL cannot be read, or the driver of the database is not installed.
    """
    url = database_url(text)
    try:
        engine = sqlalchemy.create_engine(url)
    except ImportError as error:
        postgresql = url.drivername.startswith(POSTGRESQL)
        remedy = 'pip install "slimfront[postgresql]"' if postgresql else f"install the driver of {url.drivername}"
        raise UserError(f"the storage {shown(url)} needs a package that is missing ({error}): {remedy}") from error
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise UserError(
            f"--storage must name a database that SQLAlchemy knows, such as postgresql://user@host/name or "
            f"sqlite:///file.db, but got {shown(url)}"
        ) from error
    engine.dispose()
    written = url.render_as_string(hide_password=False)
    backend = QuickRDB(written.replace("{", "{{").replace("}", "}}"))  # Optuna fills a template
    weakref.finalize(backend, backend.engine.dispose)  # closes its connections
    return QuickCache(backend)


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
    return url.set(drivername="postgresql+psycopg") if url.drivername in POSTGRESQL else url


def shown(url: URL) -> str:
    """Return a URL as it may be printed: without its password."""
    return url.render_as_string(hide_password=True)
