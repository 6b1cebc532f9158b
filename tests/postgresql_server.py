"""A PostgreSQL server of its own for the tests: on loopback, with its own folder, gone after them."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING = "a PostgreSQL server is not installed; the package of Debian is called postgresql"
QUICK = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}  # nothing survives a lost power supply


def programs() -> Path | None:
    """Return the folder of the server's programs; None if they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else (Path(on_path).resolve().parent if on_path else None)


@dataclass
class Server:
    """A server, started by `with`; it can be stopped and started again in between."""

    settings: Mapping[str, str] = field(default_factory=lambda: QUICK)

    def __enter__(self) -> Self:
        found = programs()
        assert found is not None, MISSING
        self._programs, self._counter = found, itertools.count()
        self._folder = Path(tempfile.mkdtemp(prefix="slimfront-postgresql-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if os.geteuid() == 0:
            os.chown(self._folder, *self._owner)
        try:
            data = ["-D", str(self._folder / "data")]
            words = [*data, "--auth=trust", "--username=slimfront", "--encoding=UTF8", "--locale=C", "--no-sync"]
            subprocess.run([found / "initdb", *words], check=True, capture_output=True, **self._as_user)
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            **self.settings,
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", *words],
                stdout=log,
                stderr=log,
                **self._as_user,
            )
        deadline = time.monotonic() + 60
        ready: list[Path | str] = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends all connections, SIGQUIT is a crash."""
        self._process.send_signal(how)
        self._process.wait(timeout=60)

    def freeze(self) -> None:
        """Stop all of the server's processes where they are; the system goes on to take what is sent to them."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, how: signal.Signals) -> None:
        """Send a signal to the process that accepts connections, and then to those that serve them."""
        main = self._process.pid
        os.kill(main, how)
        for child in Path(f"/proc/{main}/task/{main}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), how)

    def database(self) -> str:
        """Create an empty database; return its URL, as a user types it."""
        name = f"database_{next(self._counter)}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://slimfront@127.0.0.1:{self.port}/{name}"

    def sql(self, command: str, database: str = "postgres") -> str:
        """Execute a command; return what it prints."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "slimfront", "-d", database]
        words: list[Path | str] = [
            self._programs / "psql",
            *where,
            "-X",
            "-q",
            "-t",
            "-A",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            command,
        ]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    @property
    def _owner(self) -> tuple[int, int]:
        """Return the numbers of a user and a group that may own a server; the server refuses to run as root."""
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = names.get("postgres") or names["nobody"]
        return entry.pw_uid, entry.pw_gid

    @property
    def _as_user(self) -> dict[str, Any]:
        user, group = self._owner
        other = {"user": user, "group": group, "extra_groups": []} if os.geteuid() == 0 else {}
        return {"cwd": self._folder, **other}
