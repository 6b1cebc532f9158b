"""Workers that Ray places: on the machines of a cluster, of which one may be lost."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from search.command_parser import EXIT_STOPPED
from search.study.front import trained, trained_count
from tests.several import check, finished, folder_of_study, has_trained, opened, started, wait_until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'slimfront[distributed]'"
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with folder_of_study(tmp_path) as found:
        yield found


class Cluster:
    """A cluster of two machines of one core each, on loopback."""

    def __init__(self) -> None:
        program = str(Path(__file__).parent / "ray_cluster.py")
        self._process = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()

    def tell(self, word: str) -> None:
        """Add or remove a machine."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def end(self) -> None:
        """End the cluster."""
        self._process.communicate(timeout=60)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray would replace loopback by the machine's address
    found = Cluster()
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.end()


def test_the_workers_of_a_cluster_share_a_database(folder: Path, cluster: Cluster, postgresql: str) -> None:
    words = "run", "my_study.py:study", "--workers", "2", "--engine", "ray", "--storage", postgresql
    process = started(folder, *words, "--trials", "2000")  # more than one worker does while the other starts
    wait_until(lambda: has_trained(folder, 1, postgresql)() and len(trained_by(folder, postgresql)) == 2, 150)
    process.send_signal(signal.SIGINT)
    assert "Ray cluster of 3 machines, 2 cores" in finished(process, EXIT_STOPPED)
    done = trained_count(opened(folder, postgresql))
    finished(started(folder, *words, "--trials", str(done + 1)))
    check(folder, done + 1, postgresql)


def trained_by(folder: Path, url: str) -> set[str]:
    """Return the workers that have trained a candidate."""
    return {trial.user_attrs["worker"] for trial in trained(opened(folder, url))}


@pytest.mark.slow
def test_a_lost_machine_loses_no_trial(folder: Path, cluster: Cluster, postgresql: str) -> None:
    words = (
        "run", "my_study.py:study", "--workers", "2", "--engine", "ray", "--trials", "7", "--storage", postgresql,
        "--set", "epochs=25", "--unverified",
    )  # fmt: skip
    process = started(folder, *words)
    wait_until(has_trained(folder, 1, postgresql))
    cluster.tell("remove")
    cluster.tell("add")
    assert re.search(r"was lost by Ray \(Actor(Died|Unavailable)Error\): it is started again", finished(process))
    check(folder, 7, postgresql)


@pytest.mark.slow
def test_workers_without_a_free_machine_are_not_waited_for(folder: Path, cluster: Cluster, postgresql: str) -> None:
    words = "run", "my_study.py:study", "--workers", "5", "--engine", "ray", "--trials", "4", "--storage", postgresql
    finished(started(folder, *words, "--unverified"))
    assert len(trained(opened(folder, postgresql))) == 4


@pytest.mark.slow
def test_a_cluster_is_started_where_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    printed = finished(started(folder, "run", "my_study.py:study", "--engine", "ray", "--trials", "2", "--unverified"))
    assert "Ray cluster of 1 machine" in printed
    check(folder, 2)


@pytest.mark.slow
def test_a_cluster_that_cannot_be_reached_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    process = started(folder, "run", "my_study.py:study", "--engine", "ray", "--workers", "2")
    assert "no Ray cluster can be reached or started" in finished(process, 2)
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1"
