"""Processes that start at once: forks of one that has imported torch, where the system can fork.

A new Python takes one to two seconds until torch is imported, a fork of one that has imported it some milliseconds. The
process that forks runs nothing else, so a fork knows as little as a new Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

CAN_FORK = sys.platform == "linux"  # elsewhere libraries of the system may not survive it
WAIT, KILL = b"wait", b"kill"
MESSAGE = 64  # bytes, at least those of a message
PIPES = 3  # standard input, output and error


class ForkedProcess:
    """A process with pipes to its standard input and output, as `subprocess.Popen` has them.

    Parameters
    ----------
    command
        The command of a Python that calls `serve`, without the number of its socket.
    stderr
        Where its error output goes.

    Attributes
    ----------
    stdin, stdout
        Streams of text.
    returncode
        Its exit code, negative after a signal; None before it is known.

    Raises
    ------
    OSError
        If no process can be forked.
    """

    def __init__(self, command: Callable[[int], list[str]], stderr: TextIO) -> None:
        self.returncode: int | None = None
        moment = json.dumps([str(Path.cwd()), dict(os.environ), paths_of_modules()])
        its_input, stdin = os.pipe()
        stdout, its_output = os.pipe()
        try:
            self._server = _server(command)
            self._number = self._server.ask(b"fork", (its_input, its_output, stderr.fileno()))
        except BaseException:
            os.close(stdin)
            os.close(stdout)
            raise
        finally:
            os.close(its_input)
            os.close(its_output)
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(stdout)
        self.stdin.write(f"{moment}\n")

    def wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        return self._end(WAIT)

    def kill(self) -> None:
        """End the process."""
        self._end(KILL)

    def _end(self, how: bytes) -> int:
        if self.returncode is None:
            try:
                self.returncode = self._server.ask(b"%s %d" % (how, self._number))
            except OSError:  # the process that forks was killed; this one ends when its pipes are closed
                self.returncode = -signal.SIGKILL
        return self.returncode


def paths_of_modules() -> list[str]:
    """Return the folders where this process finds modules, in another order: the current one comes last.

    Python itself puts it first, where a file of the user's may have the name of a module of ours, or of one that we
    use.
    """
    return [*filter(None, sys.path), *([str(Path.cwd())] * ("" in sys.path))]


class _Server:
    """A process that forks, and a socket to it; it ends with this process."""

    def __init__(self, command: Callable[[int], list[str]]) -> None:
        self._lock = Lock()
        self._socket, its_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_socket:
            self._process = subprocess.Popen(  # noqa: S603 - our own code
                command(its_socket.fileno()),
                pass_fds=[its_socket.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which ends the others
            )

    def ask(self, message: bytes, pipes: tuple[int, ...] = ()) -> int:
        """Send a message; return the answer.

        Raises
        ------
        OSError
            If there is none, because the process has ended.
        """
        with self._lock:
            socket.send_fds(self._socket, [message], pipes)
            answer = self._socket.recv(MESSAGE)
        if not answer:
            raise BrokenPipeError("the process that forks has ended")
        return int(answer)


# By the process that started it, since one that was forked has none of its own, and by what its forks do
_servers: dict[tuple[int, Callable[[int], list[str]]], _Server] = {}
_change = Lock()


def _server(command: Callable[[int], list[str]]) -> _Server:
    """Return the process that forks for this one."""
    key = os.getpid(), command
    with _change:
        if key not in _servers:
            _servers[key] = _Server(command)
        return _servers[key]


def serve(number: int, main: Callable[[], None]) -> None:
    """Fork whenever the socket with this number asks for it, until it is closed; each fork calls a function.

    A message with three open files asks for a fork that has them as standard input, output and error, and is answered
    with its process number. `wait` and `kill` with such a number are answered with the exit code.
    """
    asked = socket.socket(fileno=number)
    while True:
        message, pipes, *_ = socket.recv_fds(asked, MESSAGE, PIPES)
        if not message:
            return
        if pipes:
            fork = os.fork()
            if not fork:
                asked.close()
                _become(pipes, main)
            for pipe in pipes:
                os.close(pipe)
            asked.send(b"%d" % fork)
        else:
            how, _, fork_number = message.partition(b" ")
            if how == KILL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(fork_number), signal.SIGKILL)
            _, status = os.waitpid(int(fork_number), 0)
            asked.send(b"%d" % os.waitstatus_to_exitcode(status))


def _become(pipes: list[int], main: Callable[[], None]) -> None:
    """Call a function with these pipes, and folder, environment and paths of the first line; end the process."""
    for place, pipe in enumerate(pipes):
        os.dup2(pipe, place)
        os.close(pipe)
    code = 1
    try:
        folder, environment, paths = json.loads(sys.stdin.readline())
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = paths
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends with it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
