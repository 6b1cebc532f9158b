"""Runs that are started in the same second: on a journal, a new file of SQLite and a new database of PostgreSQL."""

from __future__ import annotations

import importlib
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from search.proposals.defaults import resolved
from search.study.front import trained, trained_count
from search.study.journal import storage_at
from search.study.storage import open_study
from tests.small_study import study as small_study

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from tests.postgresql_server import Server

STORAGES = ("journal", "sqlite", "postgresql")


def _url(kind: str, server: Server, folder: Path) -> str | None:
    if kind == "postgresql":
        return server.database()
    return f"sqlite:///{folder}/trials.db" if kind == "sqlite" else None


def _opens(urls: list[tuple[Path, str | None]], barrier: Barrier, failures: multiprocessing.Queue[str]) -> None:
    spec = resolved(small_study())
    for folder, url in urls:
        barrier.wait(timeout=60)
        try:
            study = open_study(spec, folder, url, create=True)
            study.set_user_attr("some", "thing")
            study.enqueue_trial({"x": 0.5})
        except Exception as error:  # noqa: BLE001 - it fails in the other process
            failures.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("workers", "times"), [(2, 5), pytest.param(4, 20, marks=pytest.mark.slow)], ids=["two", "four, many times"]
)
def test_several_create_a_study_at_once(workers: int, times: int, tmp_path: Path, postgresql_session: Server) -> None:
    places = [tmp_path / f"{kind}-{number}" for number in range(times) for kind in STORAGES]
    urls = [(folder, _url(folder.name.partition("-")[0], postgresql_session, folder)) for folder in places]
    for folder in places:
        folder.mkdir()
    start = multiprocessing.get_context("spawn")
    barrier, failures = start.Barrier(workers), start.Queue()
    processes = [
        start.Process(target=importlib.import_module(__name__)._opens, args=(urls, barrier, failures))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=280)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0] * workers
    for folder, url in urls:
        storage = storage_at(folder, url, create=False)
        (stored,) = storage.get_all_studies()
        study = optuna.load_study(study_name=stored.study_name, storage=storage)
        assert study.user_attrs["some"] == "thing"
        assert study.user_attrs["definition"]
        assert study.metric_names == ["top1_percent", "size_bytes"]
        assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING] * workers


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORAGES)
def test_two_runs_share_the_study(kind: str, tmp_path: Path, postgresql_session: Server) -> None:
    (tmp_path / "small.py").write_text((Path(__file__).parent / "small_study.py").read_text())
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        url = _url(kind, postgresql_session, folder)
        where = ["--folder", str(folder)] + (["--storage", url] if url else [])
        words = [sys.executable, "-m", "search", "run", "small.py:study", "--trials", "4", "--unverified", *where]
        runs = [subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        printed = [run.communicate(timeout=200)[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], printed
        study = optuna.load_study(study_name="small", storage=storage_at(folder, url, create=False))
        trials = study.get_trials()
        assert trained_count(study) == 4
        assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
        assert len({trial.user_attrs["plan"] for trial in trained(study)}) == 4
