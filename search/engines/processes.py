"""Workers as processes of this machine."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from typing import IO, TYPE_CHECKING

from objectives.runtimes.isolated_process import python

if TYPE_CHECKING:
    from collections.abc import Sequence

WORK = "from search.cli import main; raise SystemExit(main())"


class Process:
    """A worker that runs as a process of its own.

    It does not get the signals of the terminal; it stops when its input ends, so that it never outlives this process.

    Parameters
    ----------
    arguments
        The arguments of `slimfront`.
    environment
        Environment variables to add.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*python(WORK), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
            text=True,
            errors="replace",
        )
        assert self._process.stderr is not None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    waits = False

    def lines(self) -> list[str]:
        """Return the lines that it has printed since the last call."""
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return found

    def ended(self) -> int | None:
        """Return its exit code, None as long as it runs; negative: the signal that ended it."""
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

    def end_in_words(self) -> str:
        """Say how it ended."""
        return end_in_words(self._process.wait())

    def stop(self) -> None:
        """Ask it to stop after the trial under way; asked again, it stops at once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        """Close the pipes of a process that has ended, after what it printed was read."""
        self._reader.join()
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        self._process.stderr.close()

    def _read(self, printed: IO[str]) -> None:
        for line in printed:
            self._lines.put(line.rstrip("\n"))


class Processes:
    """The engine that starts workers as processes of this machine, one for each GPU where there are GPUs.

    Parameters
    ----------
    gpus
        Number of GPUs to share among the workers.
    """

    def __init__(self, gpus: int = 0) -> None:
        self._gpus = gpus

    def start(self, number: int, arguments: Sequence[str], environment: dict[str, str]) -> Process:
        """Start a worker."""
        gpu = {"CUDA_VISIBLE_DEVICES": str(number % self._gpus)} if self._gpus else {}
        return Process(arguments, environment | gpu)


def end_in_words(code: int) -> str:
    """Say how a process ended, by its exit code."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
