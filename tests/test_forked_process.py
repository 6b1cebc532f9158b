"""Processes that are forked: they start at once, know what a new Python would know, and outlive nobody."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from objectives.runtimes import isolated_process
from objectives.runtimes.forked_process import CAN_FORK, ForkedProcess
from objectives.runtimes.isolated_process import python
from tests.installed import for_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux alone")
MAIN = """
def main():
    import json, os, sys
    for line in sys.stdin:
        if line.startswith("end"):
            sys.exit(int(line.split()[1]))
        if line.startswith("crash"):
            os.abort()
        print(json.dumps([os.getcwd(), os.environ.get("MARK", ""), os.getppid()]), flush=True)
"""
SERVE = MAIN + "from objectives.runtimes.forked_process import serve; serve({}, main)"
LEFT_ALONE = """
import sys, time
from objectives.runtimes.forked_process import ForkedProcess
from tests.test_forked_process import command
fork = ForkedProcess(command, sys.stderr)
fork.stdin.write("where\\n"); fork.stdin.flush()
print(fork.stdout.readline(), flush=True)
time.sleep(600)
"""


def command(number: int) -> list[str]:
    return python(SERVE.format(number))


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "stderr").open("w+") as file:
        yield file


@contextlib.contextmanager
def forked(stderr: TextIO) -> Iterator[ForkedProcess]:
    fork = ForkedProcess(command, stderr)
    with fork.stdin, fork.stdout:
        yield fork


def said(fork: ForkedProcess, line: str = "where") -> Any:
    fork.stdin.write(f"{line}\n")
    fork.stdin.flush()
    return eval(fork.stdout.readline())  # noqa: S307 - our own JSON


def test_forks_are_processes_of_their_own_with_exit_codes(stderr: TextIO) -> None:
    with forked(stderr) as one, forked(stderr) as other:
        assert said(one)[2] == said(other)[2] != os.getpid()
        one.stdin.write("end 3\n")
        one.stdin.flush()
        assert one.wait() == one.returncode == 3
        assert said(other)
        other.kill()
        assert other.returncode == -signal.SIGKILL
        assert other.wait() == -signal.SIGKILL
    with forked(stderr) as crashed:
        crashed.stdin.write("crash\n")
        crashed.stdin.flush()
        assert crashed.wait() == -signal.SIGABRT


def test_a_fork_has_the_folder_and_the_environment_of_the_moment(
    stderr: TextIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mark in ("first", "second"):
        (tmp_path / mark).mkdir()
        monkeypatch.chdir(tmp_path / mark)
        monkeypatch.setenv("MARK", mark)
        with forked(stderr) as fork:
            assert said(fork)[:2] == [str((tmp_path / mark).resolve()), mark]
            fork.kill()


def test_the_forks_of_a_killed_process_end() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEFT_ALONE], stdout=subprocess.PIPE, text=True, env=for_processes()
    ) as process:
        assert process.stdout is not None
        server = eval(process.stdout.readline())[2]  # noqa: S307 - our own JSON
        assert Path(f"/proc/{server}").exists()
        process.kill()
    for _ in range(100):
        if not Path(f"/proc/{server}").exists() or "Z" in Path(f"/proc/{server}/stat").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the process that forks outlives the one that started it")


def test_without_forks_a_file_runs_in_a_new_python(monkeypatch: pytest.MonkeyPatch, stderr: TextIO) -> None:
    def refused(*_: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(isolated_process, "ForkedProcess", refused)
    process = isolated_process._started(stderr)
    assert isinstance(process, subprocess.Popen)
    process.kill()
    process.communicate()
