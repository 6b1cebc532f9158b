"""Connections to PostgreSQL whose waits end when the server no longer answers anybody.

The operating system of a server that is stopped, paused with its machine or starved still confirms what it receives,
so no timeout of TCP ends the wait for an answer. A slow statement looks the same, so silence alone is not enough: after
some seconds of it the server is asked for another connection, and one that does not even begin to answer that is lost.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from search.study.durations import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import URL

T = TypeVar("T")

SILENCE = 10.0  # seconds without an answer before a server is asked for another connection (chosen)


class Watched(psycopg.Connection[Any]):
    """A connection that ends with an error once its server answers neither it nor a new one."""

    def wait(self, gen: Generator[Any, Any, T], *given: Any, **named: Any) -> T:  # noqa: ANN401 - psycopg's
        """Wait until an operation is done.

        Raises
        ------
        psycopg.OperationalError
            If the server no longer answers; the connection is closed then.
        """
        return super().wait(self._watched(gen), *given, **named)

    def _watched(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Yield what an operation waits for; psycopg sends every 0.1 s whether it came."""
        heard = asked = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                came = yield wanted
                now = time.monotonic()
                if came:
                    heard = asked = now
                elif now - asked >= SILENCE:
                    self._require_server(now - heard)
                    asked = time.monotonic()
                wanted = gen.send(came)
        except StopIteration as end:
            done: T = end.value
            return done

    def _require_server(self, silence: float) -> None:
        """Check that the server begins to answer another connection; whatever it says, it is there."""
        info = self.info
        this: dict[str, Any] = {
            "host": info.host,
            "hostaddr": info.hostaddr,
            "port": info.port,
        }  # where the URL names several
        try:
            psycopg.connect(make_conninfo(info.dsn, password=info.password, **this)).close()
        except psycopg.errors.ConnectionTimeout as error:
            self.close()
            raise psycopg.OperationalError(
                f"the server has not answered for {duration(silence)}, and not accepted another connection"
            ) from error
        except psycopg.OperationalError:  # such as too many connections
            return


def connector(url: URL, options: dict[str, Any]) -> Callable[[], Watched]:
    """Return what connects to a database, for SQLAlchemy.

    Parameters
    ----------
    url
        The database.
    options
        Options of the driver, beside those of the URL.
    """
    dialect: Any = url.get_dialect()
    words, named = dialect(dbapi=dialect.import_dbapi()).create_connect_args(url)
    settings: dict[str, Any] = {**named, **options}
    return lambda: Watched.connect(*words, **settings)
