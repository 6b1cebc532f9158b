"""Storages in databases: they say what Optuna's say of the same database, of which they read only what is new."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import get_storage

from search.study import quick_database
from search.study.database import database_storage
from tests.test_quick_journal import act, said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def opened(url: str, seed: int = 0) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=seed)
    return optuna.create_study(
        storage=database_storage(url, create=True), study_name="s", load_if_exists=True, sampler=sampler
    )


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Return the statements that are executed, as they come."""
    seen: list[str] = []

    def note(*arguments: Any) -> None:
        seen.append(arguments[2])

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    yield seen
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("seed", range(2))
def test_it_says_what_optunas_storage_says(url: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_database, "LONGEST_OLD", 0.0)
    rng = random.Random(seed)  # noqa: S311 - of a test
    workers, running = [opened(url, seed) for _ in range(2)], ([], [])  # type: ignore[var-annotated]
    for _ in range(60):
        at = rng.randrange(2)
        act(workers[at], rng, running[at])
        if rng.random() < 0.3:
            workers[rng.randrange(2)].get_trials(deepcopy=False)
    for worker in workers:
        worker._storage.remove_session()
    expected = said(get_storage(url))
    assert [said(worker._storage) for worker in workers] == [expected, expected]
    assert said(database_storage(url, create=True)) == expected


def test_the_parameters_of_a_trial_are_one_statement(url: str, statements: list[str]) -> None:
    study = opened(url)
    study.optimize(lambda trial: sum(trial.suggest_float(f"p{at}", 0, 1) for at in range(30)), 1)
    trial = study.ask()
    statements.clear()
    for at in range(30):
        trial.suggest_float(f"p{at}", 0, 1)
    assert not statements
    trial.set_user_attr("plan_key", "k")
    assert sum(one.startswith("INSERT INTO trial_params") for one in statements) == 1
    assert len(get_storage(url).get_trial(trial._trial_id).params) == 30


def test_a_finished_trial_is_read_once(url: str, statements: list[str]) -> None:
    first, second = opened(url), opened(url)
    first.optimize(lambda trial: trial.suggest_float("x", 0, 1), 5)
    assert len(second.get_trials(deepcopy=False)) == 5
    statements.clear()
    assert len(second.get_trials(deepcopy=False)) == 5
    assert not any("trial_params" in one for one in statements)
    assert len(statements) <= 3


def test_a_running_trial_of_another_worker_is_seen_to_end_at_once(url: str) -> None:
    first, second = opened(url), opened(url)
    trial = first.ask()
    assert [one.state.name for one in second.get_trials(deepcopy=False)] == ["RUNNING"]
    trial.suggest_float("x", 0, 1)
    first.tell(trial, 2.0)
    (seen,) = second.get_trials(deepcopy=False)
    assert (seen.state.name, seen.values, list(seen.params)) == ("COMPLETE", [2.0], ["x"])


def test_a_worker_sees_what_it_wrote_at_once(url: str) -> None:
    study = opened(url)
    trial = study.ask()
    study.get_trials(deepcopy=False)
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("a", 1)
    trial.set_constraint("limit", 1.0)
    (seen,) = study.get_trials(deepcopy=False)
    assert (list(seen.params), seen.user_attrs, seen.constraints) == (["x"], {"a": 1}, {"limit": 1.0})


def test_a_parameter_that_contradicts_earlier_ones_is_refused(url: str) -> None:
    study = opened(url)
    study.optimize(lambda trial: trial.suggest_categorical("x", [1, 2]), 2)
    with pytest.raises(ValueError, match="dynamic value space"):
        study.ask().suggest_categorical("x", [1, 3])


def test_a_finished_trial_is_refused_changes(url: str) -> None:
    study = opened(url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    trial = study.ask()
    study.tell(trial, 1.0)
    trial.suggest_float("x", 0, 1)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study.get_trials()
