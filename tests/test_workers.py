"""Workers of a study: who is alive, who does what, and that nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import optuna
import pytest
from filelock import FileLock
from optuna.trial import TrialState

import search.study.workers
from search.study.journal import journal_storage
from search.study.queue import ask, enqueue, rerun_abandoned
from search.study.records import ASKED, PULSE, RERUN, WORKER
from search.study.workers import Alone, Workers, _is_locked

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Study
    from optuna.storages import BaseStorage

JOIN_AND = """
import sys, time
from pathlib import Path
import optuna
from search.study.journal import journal_storage
from search.study.queue import ask
from search.study.workers import Workers

optuna.logging.set_verbosity(optuna.logging.ERROR)
folder = Path(sys.argv[1])
study = optuna.load_study(study_name="s", storage=journal_storage(folder / "journal.log"))
with Workers(study, folder) as workers:
    {act}
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(study_name="s", storage=journal_storage(tmp_path / "journal.log"))


def other(folder: Path, act: str) -> subprocess.Popen[str]:
    """Start another worker that does this, and wait until it has."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOIN_AND.format(act=act), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def without_locks(monkeypatch: pytest.MonkeyPatch, lease: int, pulse_seconds: float = 0.1) -> None:
    """Let workers of this process see all others as if they were on other machines, and have quick pulses."""
    calls = itertools.count()
    monkeypatch.setattr(search.study.workers, "running_system", lambda: str(next(calls)))
    monkeypatch.setattr(search.study.workers, "LEASE", lease)
    monkeypatch.setattr(search.study.workers, "PULSE_SECONDS", pulse_seconds)


def test_a_task_belongs_to_the_first_who_asks_until_it_gives_it_back(study: Study, tmp_path: Path) -> None:
    with Workers(study, tmp_path) as one, Workers(study, tmp_path) as two:
        with one.ticket("a") as first, two.ticket("a") as second, two.ticket("b") as elsewhere:
            assert [first.ahead(), second.ahead(), elsewhere.ahead()] == [0, 1, 0]
        with two.ticket("a") as third:
            assert third.ahead() == 0


def test_the_task_of_a_killed_worker_on_this_machine_is_free_at_once(study: Study, tmp_path: Path) -> None:
    process = other(tmp_path, "ticket = workers.ticket('a'); ticket.__enter__()")
    with Workers(study, tmp_path) as workers, workers.ticket("a") as ticket:
        assert ticket.ahead() == 1
        kill(process)
        assert ticket.ahead() == 0


def test_a_worker_on_another_machine_is_gone_once_its_pulse_stops(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = other(tmp_path, "ticket = workers.ticket('a'); ticket.__enter__()")
    without_locks(monkeypatch, lease=5)
    with Workers(study, tmp_path) as workers, workers.ticket("a") as ticket:
        kill(process)
        assert ticket.ahead() == 1
        time.sleep(1.0)
        assert ticket.ahead() == 0


def test_nobody_is_gone_because_the_storage_cannot_be_reached(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, lease=3)
    with Workers(study, tmp_path) as one, Workers(study, tmp_path) as two:
        assert one.name in two.living()
        with monkeypatch.context() as patch:
            patch.setattr(study._storage, "set_trial_user_attr", mock.Mock(side_effect=OSError("unreachable")))
            time.sleep(1.0)
        assert one.name in two.living()
        assert two.name in one.living()


def test_a_lock_is_seen_as_its_owner_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path, thread_local=False)
    assert not _is_locked(path)
    with lock:
        assert _is_locked(path)
        assert _is_locked(path)
    path.touch()
    assert not _is_locked(path)
    with lock.acquire(timeout=0):  # looking has not kept it
        pass


def test_a_worker_with_a_pulse_is_alive_however_the_clocks_jump(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, lease=8, pulse_seconds=0.05)
    day = 86400.0
    with Workers(study, tmp_path) as one, Workers(study, tmp_path) as two, one.ticket("a"), two.ticket("a") as ticket:
        for jump in (0.0, day, -day, 0.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: time.monotonic() + jump)
            time.sleep(0.3)
            assert ticket.ahead() == 1


def refused_for(worker: Workers, act: Callable[[int, str, Any], None]) -> Callable[[int, str, Any], None]:
    """Return an act of the storage that fails for one worker."""

    def refused(trial_id: int, key: str, value: Any) -> None:
        if trial_id == worker._own:
            raise OSError("unreachable")
        act(trial_id, key, value)

    return refused


def test_a_worker_that_had_stalled_joins_again(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, lease=3)
    with Workers(study, tmp_path) as one, Workers(study, tmp_path) as two:
        assert one.name in two.living()
        with monkeypatch.context() as patch:
            patch.setattr(one._storage, "set_trial_user_attr", refused_for(one, one._storage.set_trial_user_attr))
            time.sleep(1.0)
            assert one.name not in two.living()
        time.sleep(0.5)
        assert one.name in two.living()


def test_a_worker_that_has_left_is_gone(study: Study, tmp_path: Path) -> None:
    with Workers(study, tmp_path) as one, Workers(study, tmp_path) as two:
        one.__exit__()
        assert one.name not in two.living()
        assert two.name in two.living()
        assert "host:1" not in two.living()  # as version 0.1 named workers
    assert not list((tmp_path / "workers").iterdir())


def test_turns_are_taken_one_after_the_other(study: Study, tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with Workers(study, tmp_path) as workers:
            for _ in range(5):
                with workers.turn("a"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.002)
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_shared_tasks_are_done_once_and_everybody_gets_all_results(study: Study, tmp_path: Path) -> None:
    tasks = [f"task {number}" for number in range(20)]
    done: list[int] = []
    found: list[dict[str, Any]] = []

    def work(at: int) -> int:
        done.append(at)
        time.sleep(0.002)
        return at * at

    def share() -> None:
        with Workers(study, tmp_path) as workers:
            found.append(workers.share(tasks, work))

    threads = [threading.Thread(target=share) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(20))
    assert found == [{task: at * at for at, task in enumerate(tasks)}] * 3
    assert Alone().share(tasks, lambda at: at * at) == found[0]


def test_shared_tasks_end_when_there_is_no_time_and_go_on_later(study: Study, tmp_path: Path) -> None:
    tasks = ["a", "b", "c"]
    with Workers(study, tmp_path) as workers:
        assert workers.share(tasks, lambda at: at if at < 2 else None) == {"a": 0, "b": 1}
        assert workers.share(tasks, lambda at: 10 + at) == {"a": 0, "b": 1, "c": 12}
    assert Alone().share(tasks, lambda at: at if at < 2 else None) == {"a": 0, "b": 1}


def test_a_shared_task_of_a_killed_worker_is_done_by_another(study: Study, tmp_path: Path) -> None:
    process = other(tmp_path, "ticket = workers.ticket('b'); ticket.__enter__()")
    threading.Timer(0.3, kill, [process]).start()
    with Workers(study, tmp_path) as workers:
        assert workers.share(["a", "b"], lambda at: at) == {"a": 0, "b": 1}


@pytest.mark.parametrize("asked", [False, True])
def test_the_trial_of_a_killed_worker_is_run_next_and_as_it_was(study: Study, tmp_path: Path, *, asked: bool) -> None:
    for x in (0.1, 0.2, 0.3):
        enqueue(study, {"x": x}, 2.0 if asked else None)
    process = other(tmp_path, "ask(study, workers)")  # killed before it draws anything
    with Workers(study, tmp_path) as workers:
        assert rerun_abandoned(study, workers) == 0
        kill(process)
        assert rerun_abandoned(study, workers) == 1
        assert rerun_abandoned(study, workers) == 0
        trial = ask(study, workers)
        assert (trial.number, trial.user_attrs[RERUN], trial.user_attrs[WORKER]) == (3, 0, workers.name)
        assert trial.user_attrs.get(ASKED) == (2.0 if asked else None)
        assert trial.suggest_float("x", 0, 1) == 0.1
        assert [ask(study, workers).number for _ in range(3)] == [1, 2, 4]
    assert study.trials[0].state == TrialState.FAIL


def test_a_trial_whose_worker_is_not_known_is_run_again(study: Study, tmp_path: Path) -> None:
    study.ask()  # as a version that did not say
    with Workers(study, tmp_path) as workers:
        assert rerun_abandoned(study, workers) == 1


@pytest.mark.parametrize("acts", range(5))
def test_a_kill_while_a_trial_is_given_back_loses_nothing(
    study: Study, tmp_path: Path, acts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Workers(study, tmp_path) as gone:
        ask(study, gone).suggest_float("x", 0, 1)
    dying = Workers(study, tmp_path).__enter__()
    storage, left = type(study._storage), [acts]

    def counted(act: Any) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return act(*arguments, **named)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("create_new_trial", "set_trial_state_values", "set_trial_user_attr"):
            patch.setattr(storage, name, counted(getattr(storage, name)))
        with contextlib.suppress(KeyboardInterrupt):
            rerun_abandoned(study, dying)
    dying._stop.set()
    dying._lock.release()  # it is gone, with all that it held
    with Workers(study, tmp_path) as workers:
        rerun_abandoned(study, workers)
        assert [trial.user_attrs.get(RERUN) for trial in study.trials] == [None, 0]
        assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def take(path: str, barrier: Any, found: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(path)
    study = optuna.load_study(study_name="s", storage=journal_storage(folder / "journal.log"))
    with Workers(study, folder) as workers:
        barrier.wait()
        for _ in range(10):
            found.put(ask(study, workers).number)


def test_no_two_workers_take_the_same_trial(study: Study, tmp_path: Path) -> None:
    for number in range(20):
        enqueue(study, {"x": number / 20})
    spawn = multiprocessing.get_context("spawn")
    barrier, found = spawn.Barrier(3), spawn.Queue()
    processes = [
        spawn.Process(target=importlib.import_module(__name__).take, args=(str(tmp_path), barrier, found))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    numbers = [found.get(timeout=60) for _ in range(30)]
    for process in processes:
        process.join()
    assert sorted(numbers) == list(range(30))


def test_pulses_are_recorded(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.study.workers, "PULSE_SECONDS", 0.05)
    with Workers(study, tmp_path) as workers:
        time.sleep(0.3)
        (own,) = workers.held("present")
        assert own.user_attrs[PULSE] >= 2


def test_the_storage_may_be_a_database(tmp_path: Path) -> None:
    storage: BaseStorage = optuna.storages.get_storage(f"sqlite:///{tmp_path}/a.db")
    study = optuna.create_study(study_name="s", storage=storage)
    enqueue(study, {"x": 0.5})
    with Workers(study, tmp_path) as one, Workers(study, tmp_path) as two:
        with one.ticket("a"), two.ticket("a") as second:
            assert second.ahead() == 1
        assert ask(study, one).suggest_float("x", 0, 1) == 0.5
        one.__exit__()
        assert rerun_abandoned(study, two) == 1
        assert ask(study, two).suggest_float("x", 0, 1) == 0.5
