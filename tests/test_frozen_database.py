"""A database server that keeps its connections but does not answer: it counts as lost, and a slow one does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from search.study import frozen_server, patience
from search.study.database import database_url
from search.study.errors import StorageFault
from search.study.journal import storage_at
from tests import postgresql_server
from tests.test_lost_database import _ended, _started, _stored, _wait_for_trial, study

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORT = "?connect_timeout=2"  # seconds, the least that libpq takes

__all__ = ["study"]


@pytest.fixture
def server() -> Iterator[postgresql_server.Server]:
    if postgresql_server.programs() is None:
        pytest.skip(postgresql_server.MISSING)
    with postgresql_server.Server() as started:
        yield started


def _engine(url: str) -> sqlalchemy.Engine:
    creator = frozen_server.connector(database_url(url), {})
    return sqlalchemy.create_engine("postgresql+psycopg://", creator=creator)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_server, "SILENCE", 0.5)


@pytest.mark.usefixtures("_quick")
def test_a_slow_statement_is_waited_for(postgresql: str) -> None:
    engine = _engine(postgresql + SHORT)
    with engine.connect() as connection:
        process = connection.scalar(sqlalchemy.text("SELECT pg_backend_pid()"))
        connection.execute(sqlalchemy.text("SELECT pg_sleep(1.5)"))
        assert connection.scalar(sqlalchemy.text("SELECT pg_backend_pid()")) == process
    engine.dispose()


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
def test_operations_go_on_when_a_frozen_server_wakes(
    server: postgresql_server.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = storage_at(Path(), server.database() + SHORT, create=True)
    found = optuna.create_study(storage=storage, study_name="one")
    for _ in range(3):
        server.freeze()
        threading.Timer(7.0, server.thaw).start()
        trial = found.ask()  # created once, though the server also does what it was asked before it froze
        found.tell(trial, 1.0)
    assert [trial.state for trial in found.get_trials()] == [TrialState.COMPLETE] * 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6
    assert all("cannot be reached: " in line and "waiting for it" in line for line in said[::2])
    assert all("answers again after" in line for line in said[1::2])


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
def test_a_server_that_stays_frozen_ends_with_one_line(
    server: postgresql_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LONGEST_OUTAGE", 4.0)
    found = optuna.create_study(storage=storage_at(Path(), server.database() + SHORT, create=True), study_name="one")
    server.freeze()
    started = time.monotonic()
    try:
        with pytest.raises(StorageFault, match="could not be reached for 4 s: "):
            found.ask()
        assert time.monotonic() - started < 12
    finally:
        server.thaw()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_when_its_server_wakes(study: str) -> None:
    if postgresql_server.programs() is None:
        pytest.skip(postgresql_server.MISSING)
    run = ["run", study, "--trials", "12", "--unverified"]
    with postgresql_server.Server(settings={}) as server:
        undisturbed = server.database()
        assert _ended(120, *run, "--storage", undisturbed, "--folder", "undisturbed") == 0
        url = server.database()
        with _started(120, *run, "--storage", url) as process:
            _wait_for_trial(server, url, process, "SELECT trial_id FROM trials LIMIT 1")
            time.sleep(np.random.default_rng(0).uniform(0, 1.5))
            server.freeze()
            time.sleep(45)  # longer than the wait for an answer, the connection and another one
            server.thaw()
            _, printed = process.communicate(timeout=200)
        assert process.returncode == 0, printed
        assert "Traceback" not in printed
        assert "answers again" in printed
        assert _stored(url) == _stored(undisturbed)
