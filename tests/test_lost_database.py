"""A database that is restarted, loses answers or is gone: nothing finished is lost, and nothing counts twice."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.cli import main
from search.study import patience
from search.study.errors import StorageFault
from search.study.journal import storage_at
from tests import postgresql_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study

RUN = """
import sys
from search.cli import main
from search.study import patience
patience.LONGEST_OUTAGE = float(sys.argv[1])
from search.cli import main
sys.exit(main(sys.argv[2:]))
"""
LATE = 0.3  # seconds; the first attempt after a loss comes at once


class Line:
    """A line to a server that can lose a commit, or the answer to it, and then breaks, or breaks before it is there.

    Attributes
    ----------
    commits_before
        How many commits pass before the one that is lost; None if none is.
    loses
        What is lost: the "request", the "answer", or the answer to a request that is "late".
    """

    def __init__(self, port: int) -> None:
        self.server, self._listener = port, socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.commits_before: int | None = None
        self.loses = "request"
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, after: int) -> None:
        self.commits_before = after

    def waits(self) -> bool:
        return self.commits_before is not None

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.server))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=self._answer, args=(server, client), daemon=True)
        answers.start()
        while data := _received(client):
            if b"COMMIT" in data and self.commits_before is not None:
                self.commits_before -= 1
                if self.commits_before < 0:
                    self.commits_before = None
                    client.shutdown(socket.SHUT_WR)
                    if self.loses == "late":
                        time.sleep(LATE)
                    if self.loses != "request":
                        server.sendall(data)
                        time.sleep(0.05)
                    break
            server.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        answers.join()
        client.close()
        server.close()

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket) -> None:
        while data := _received(server):
            try:
                client.sendall(data)
            except OSError:
                return


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""


@pytest.fixture
def line(postgresql: str) -> Iterator[Line]:
    found = Line(int(postgresql.rpartition(":")[2].partition("/")[0]))
    yield found
    found.close()


def _study(storage: optuna.storages.BaseStorage) -> Study:
    return optuna.create_study(storage=storage, study_name="one", load_if_exists=True)


def _ask(study: Study) -> None:
    study.ask()
    (trial,) = study.get_trials()
    assert trial.state == TrialState.RUNNING


def _enqueue(study: Study) -> None:
    study.enqueue_trial({"x": 0.5})
    (trial,) = study.get_trials()
    assert trial.state == TrialState.WAITING
    assert trial.system_attrs["fixed_params"] == {"x": 0.5}


def _take(study: Study) -> None:
    study.enqueue_trial({"x": 0.5})
    assert study.ask().suggest_float("x", 0, 1) == 0.5
    (trial,) = study.get_trials()
    assert trial.state == TrialState.RUNNING


def _tell(study: Study) -> None:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(1.0, 0)
    trial.set_user_attr("some", "thing")
    study.tell(trial, 2.0)
    study.set_user_attr("other", "thing")
    (stored,) = study.get_trials()
    assert (stored.state, stored.value, stored.user_attrs) == (TrialState.COMPLETE, 2.0, {"some": "thing"})
    assert study.user_attrs == {"other": "thing"}


def _delete(study: Study) -> None:
    optuna.delete_study(study_name="one", storage=study._storage)
    assert study._storage.get_all_studies() == []


@pytest.mark.parametrize("act", [_ask, _enqueue, _take, _tell, _delete])
@pytest.mark.parametrize("loses", ["request", "answer", "late"])
def test_an_operation_counts_once_whichever_commit_is_lost(
    postgresql: str, line: Line, act: Callable[[Study], None], loses: str
) -> None:
    url = postgresql.replace(f":{line.server}/", f":{line.port}/")
    storage, line.loses = storage_at(Path(), url, create=True), loses
    for lost in itertools.count():
        study = _study(storage)
        line.lose(after=lost)
        act(study)
        if line.waits():  # the act has no more commits
            break
        if storage.get_all_studies():
            optuna.delete_study(study_name="one", storage=storage)
    assert lost >= 2


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("search.study.console.SILENT_SECONDS", 600.0)  # a busy machine is slow to import torch
    (tmp_path / "small.py").write_text((Path(__file__).parent / "small_study.py").read_text())
    monkeypatch.chdir(tmp_path)
    return "small.py:study"


def _started(patience_seconds: float, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(patience_seconds), *words], stderr=subprocess.PIPE, text=True, bufsize=1
    )


def _ended(patience_seconds: float, *words: str) -> int:
    with _started(patience_seconds, *words) as process:
        process.communicate(timeout=120)
    return process.returncode


def _stored(url: str) -> dict[str, tuple[float, ...]]:
    """Return the values of the trained plans by the plan in words; each plan is trained once."""
    study = optuna.load_study(study_name="small", storage=storage_at(Path(), url, create=False))
    trained = [t for t in study.get_trials(states=[TrialState.COMPLETE]) if "replay_of" not in t.user_attrs]
    found = {trial.user_attrs["plan"]: tuple(trial.values) for trial in trained}
    assert len(found) == len(trained)
    assert not study.get_trials(states=[TrialState.RUNNING])
    return found


def _wait_for_trial(server: postgresql_server.Server, url: str, process: subprocess.Popen[str], query: str) -> None:
    database = url.rpartition("/")[2]
    while process.poll() is None and not (
        server.sql("SELECT to_regclass('trials')", database) and server.sql(query, database)
    ):
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_run_goes_on_when_its_server_is_restarted(study: str, tmp_path: Path, how: signal.Signals) -> None:
    if postgresql_server.programs() is None:
        pytest.skip(postgresql_server.MISSING)
    run = ["run", study, "--trials", "4", "--unverified"]
    with postgresql_server.Server(settings={}) as server:  # as it is shipped: what it confirms is on the disk
        undisturbed = server.database()
        assert _ended(60, *run, "--storage", undisturbed, "--folder", "undisturbed") == 0
        moments = np.random.default_rng(0)
        for turn in range(3):
            url = server.database()
            with _started(60, *run, "--storage", url, "--folder", str(turn)) as process:
                _wait_for_trial(server, url, process, "SELECT trial_id FROM trials LIMIT 1")
                time.sleep(moments.uniform(0, 1.5))
                server.stop(how)
                time.sleep(moments.uniform(0, 3))
                server.start()
                _, printed = process.communicate(timeout=200)
            assert process.returncode == 0, printed
            assert "Traceback" not in printed
            assert _stored(url) == _stored(undisturbed)


@pytest.mark.slow
def test_a_server_that_is_gone_ends_the_run_with_a_line_and_the_same_command_goes_on(study: str) -> None:
    if postgresql_server.programs() is None:
        pytest.skip(postgresql_server.MISSING)
    run = ["run", study, "--trials", "4", "--unverified"]
    with postgresql_server.Server(settings={}) as server:
        url = server.database()
        with _started(2, *run, "--storage", url) as process:
            _wait_for_trial(server, url, process, "SELECT trial_id FROM trials WHERE state = 'COMPLETE'")
            server.stop(signal.SIGQUIT)
            _, printed = process.communicate(timeout=60)
        assert process.returncode == 2, printed
        assert "Traceback" not in printed
        *_, waits, last = printed.splitlines()
        assert waits.endswith("waiting for it, for at most 2 s")
        assert "could not be reached for 2 s" in last
        assert "continue with: slimfront run small.py:study" in last
        server.start()
        assert _ended(2, *run, "--storage", url) == 0
        assert len(_stored(url)) == 4


def test_an_address_where_no_server_is_ends_with_one_line(
    study: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("search.study.database.LONGEST_OUTAGE_AT_START", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["front", study, "--storage", f"postgresql://me:secret@127.0.0.1:{port}/name"]) == 2
    waits, last = capsys.readouterr().err.splitlines()
    assert "cannot be reached" in waits
    assert "could not be reached for 1 s" in last
    assert "secret" not in waits + last


def test_a_database_that_does_not_exist_is_said_at_once(
    study: str, postgresql: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert main(["front", study, "--storage", f"{postgresql}x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not exist" in line
    assert time.monotonic() - started < 5


def test_a_locked_file_of_sqlite_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trials.db"
    study = _study(storage_at(tmp_path, f"sqlite:///{file}?timeout=0.1", create=True))
    other = sqlite3.connect(file, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.5, other.close).start()
    _tell(study)
    first, second = capsys.readouterr().err.splitlines()
    assert "database is locked; waiting for it, for at most 2 min 00 s" in first
    assert "answers again" in second


def test_a_file_of_sqlite_that_stays_locked_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_OUTAGE", 0.5)
    file = tmp_path / "trials.db"
    study = _study(storage_at(tmp_path, f"sqlite:///{file}?timeout=0.1", create=True))
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageFault, match=r"could not be reached for 0 s: .*locked"):
            study.ask()
        monkeypatch.setattr(patience, "LONGEST_OUTAGE", 60)
        with pytest.raises(StorageFault):  # at once: the run is ending
            study.ask()
    assert study.ask().number == 0


def test_reading_finds_no_study_without_creating_a_file(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["front", study, "--storage", "sqlite:///trials.db"]) == 2
    assert "start it with: slimfront run" in capsys.readouterr().err
    assert not (tmp_path / "trials.db").exists()
