"""Several processes on one study: all of the budget, nothing twice, nothing lost, whoever is killed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING
from unittest import mock

import optuna
import pytest
from optuna.trial import TrialState

from search import Budget
from search.engines.crew import Crew
from search.study.budget_clock import BudgetClock
from search.study.errors import UserError
from search.study.front import front, trained, trained_count
from search.study.records import REASON
from tests.several import (
    check,
    finished,
    folder_of_study,
    has_trained,
    is_being_trained,
    opened,
    processes_in,
    started,
    wait_until,
    workers_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from search.engines.engine import Started


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with folder_of_study(tmp_path) as found:
        yield found


def test_two_workers_share_draft_trials_and_budget(folder: Path) -> None:
    words = "run", "variants.py:drafted", "--workers", "2", "--trials", "7", "--set", "epochs=10"
    printed = finished(started(folder, *words))
    study = check(folder, 7)
    assert len({trial.user_attrs["worker"] for trial in trained(study)}) == 2
    assert printed.count("entries of the sensitivity table: done") == 1
    assert printed.count("teacher's file: ") == 1
    assert all((folder / f"runs/small/verified/onnx/{member.number}.json").exists() for member in front(study))
    again = finished(started(folder, *words))
    assert "7 of 7 trials are done" in again
    check(folder, 7)


def test_what_every_worker_could_say_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    first = "the draft: 40 plans were scored", "measuring 12 entries: done in 3 s", "trial 4 failed: no memory"
    second = "the draft: 41 plans were scored", "measuring 12 entries: done in 5 s", "trial 5 failed: no memory"
    study = optuna.create_study(directions=["maximize", "minimize"])
    crew = Crew(Told([first, second]), 2, lambda _: (), {}, study, BudgetClock(Budget(trials=1)))
    assert crew.work()
    assert capsys.readouterr().err.splitlines()[:4] == [*first, second[-1]]


class Told:
    """An engine whose workers print given lines and end."""

    def __init__(self, lines: Sequence[Sequence[str]]) -> None:
        self._lines = lines

    def start(self, number: int, arguments: Sequence[str], environment: dict[str, str]) -> Started:
        return mock.Mock(
            lines=lambda: list(self._lines[number]), ended=lambda: 0, waits=False, end_in_words=lambda: "ended"
        )


@pytest.mark.slow
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
        except (KeyError, UserError):
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
def test_an_error_that_only_workers_have_is_said(folder: Path) -> None:
    printed = finished(started(folder, "run", "variants.py:elsewhere", "--workers", "2", "--trials", "6"), 2)
    assert "no such data on this machine" in printed.splitlines()[-1]


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
    words = "run", "variants.py:drafted", "--workers", "2", "--cpu-seconds", "60", "--unverified", "--set", "epochs=25"
    finished(started(folder, *words))
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 70
    assert trained_count(opened(folder)) >= 2
