"""Several processes on one study: all of the budget, nothing twice, nothing lost, whoever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from search.proposals.draft_records import draft_of
from search.study.front import front, trained, trained_count
from search.study.journal import journal_storage
from search.study.records import KEY, PLAN, REASON
from tests import small_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study

ROOT = Path(__file__).parent.parent
VARIANTS = """
import dataclasses
from search import Budget, DraftStart
from my_study import study

def drafted(trials=8, epochs=1, scored=40):
    return dataclasses.replace(study(trials, epochs=epochs), start=DraftStart(scored=scored))

def failing(trials=8):
    def broken(inputs, generator):
        raise ValueError("this transform is broken")
    spec = study(trials)
    return dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, augment=broken))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with the file of a study; at the end no process of it may be left."""
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    (tmp_path / "variants.py").write_text(VARIANTS)
    yield tmp_path
    until = time.monotonic() + 30
    while (left := processes_in(tmp_path)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "search", *words],
        cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a command; return what it printed to standard error."""
    _, printed = process.communicate(timeout=200)
    assert process.returncode == code, printed
    assert "Traceback" not in printed
    return printed


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == folder and b"search" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def workers_in(folder: Path) -> list[int]:
    """Return the processes of the workers."""
    return [pid for pid in processes_in(folder) if b"--crew" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def opened(folder: Path) -> Study:
    return optuna.load_study(study_name="small", storage=journal_storage(folder / "runs/small/journal.log"))


def wait_until(condition: Callable[[], bool], seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def has_trained(folder: Path, count: int) -> Callable[[], bool]:
    def found() -> bool:
        try:
            return trained_count(opened(folder)) >= count
        except (KeyError, FileNotFoundError):
            return False

    return found


def is_being_trained(folder: Path) -> bool:
    """Whether a worker is training a candidate."""
    running = opened(folder).get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return any(KEY in trial.user_attrs for trial in running)


def check(folder: Path, trials: int) -> Study:
    """Check that so many candidates were trained, each plan once, and that nothing is left over; return the study."""
    study = opened(folder)
    assert trained_count(study) == trials
    assert not study.get_trials(states=(TrialState.RUNNING,))
    assert max(Counter(trial.user_attrs[KEY] for trial in trained(study)).values()) == 1
    assert not list((folder / "runs/small/workers").iterdir())
    if (draft := draft_of(study)) is not None:
        assert max(Counter(trial.user_attrs[PLAN] for trial in draft.trials).values()) == 1
    assert front(study)
    return study


def test_two_workers_share_draft_trials_and_budget(folder: Path) -> None:
    printed = finished(started(folder, "run", "variants.py:drafted", "--workers", "2", "--trials", "7"))
    study = check(folder, 7)
    assert len({trial.user_attrs["worker"] for trial in trained(study)}) == 2
    assert printed.count("entries of the sensitivity table: done") == 1
    assert printed.count("teacher's file: ") == 1
    assert all((folder / f"runs/small/verified/onnx/{member.number}.json").exists() for member in front(study))
    again = finished(started(folder, "run", "variants.py:drafted", "--workers", "2", "--trials", "7"))
    assert "7 of 7 trials are done" in again
    check(folder, 7)


def test_a_killed_worker_is_started_again_and_its_trial_is_run_again(folder: Path) -> None:
    words = "run", "my_study.py:study", "--workers", "2", "--trials", "6", "--set", "epochs=25", "--unverified"
    process = started(folder, *words)
    wait_until(lambda: has_trained(folder, 1)() and is_being_trained(folder))
    killed = workers_in(folder)[0]
    os.kill(killed, signal.SIGKILL)
    printed = finished(process)
    assert "was ended by SIGKILL: it is started again, and its trial is run again" in printed
    check(folder, 6)


@pytest.mark.slow
def test_the_first_interrupt_lets_all_workers_finish_their_trials(folder: Path) -> None:
    words = "run", "my_study.py:study", "--workers", "2", "--trials", "9", "--set", "epochs=25", "--unverified"
    process = started(folder, *words)
    wait_until(has_trained(folder, 1))
    process.send_signal(signal.SIGINT)
    printed = finished(process, 130)
    assert "stopping after the trials under way" in printed
    assert f"continue with: slimfront {' '.join(words)}" in printed
    done = trained_count(opened(folder))
    assert 1 <= done < 9
    assert not opened(folder).get_trials(states=(TrialState.RUNNING, TrialState.FAIL))
    finished(started(folder, *words))
    check(folder, 9)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_draft_can_be_interrupted_and_goes_on(folder: Path, number: signal.Signals) -> None:
    words = "run", "variants.py:drafted", "--workers", "2", "--trials", "3", "--set", "scored=150", "--unverified"
    process = started(folder, *words)

    def scores() -> bool:
        try:
            return len(optuna.load_study(study_name="small-draft", storage=opened(folder)._storage).trials) > 5
        except (KeyError, FileNotFoundError):
            return False

    wait_until(scores)
    process.send_signal(number)
    assert "continue with: slimfront run variants.py:drafted" in finished(process, 130)
    finished(started(folder, *words))
    check(folder, 3)


@pytest.mark.slow
def test_workers_end_when_the_process_of_the_run_is_killed(folder: Path) -> None:
    words = "run", "my_study.py:study", "--workers", "2", "--trials", "6", "--set", "epochs=25", "--unverified"
    process = started(folder, *words)
    wait_until(has_trained(folder, 1))
    process.kill()
    process.communicate()
    wait_until(lambda: not processes_in(folder))
    finished(started(folder, *words))
    check(folder, 6)


@pytest.mark.slow
def test_an_error_of_a_worker_ends_the_run_with_one_line(folder: Path) -> None:
    printed = finished(started(folder, "run", "variants.py:failing", "--workers", "2", "--trials", "6"), 2)
    assert "this transform is broken" in printed.splitlines()[-1]
    assert printed.splitlines()[-1].startswith("slimfront: ")
    failed = opened(folder).get_trials(states=(TrialState.FAIL,))
    assert {trial.user_attrs[REASON] for trial in failed if REASON in trial.user_attrs}


@pytest.mark.slow
def test_workers_that_were_started_by_hand_share_a_study(folder: Path) -> None:
    words = "worker", "variants.py:drafted", "--trials", "6"
    both = [started(folder, *words) for _ in range(2)]
    for process in both:
        assert "the budget is spent" in finished(process)
    check(folder, 6)


@pytest.mark.slow
def test_a_cpu_budget_is_that_of_all_workers(folder: Path) -> None:
    before = os.times()
    words = "run", "variants.py:drafted", "--workers", "2", "--cpu-seconds", "24", "--unverified", "--set", "epochs=25"
    finished(started(folder, *words))
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 30
    assert trained_count(opened(folder)) >= 2
