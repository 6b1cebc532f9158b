"""Storages in databases: they say what Optuna's say of the same database, of which they read only what is new."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import get_storage
from optuna.trial import TrialState

from search.study import database_naming, quick_database
from search.study.attributes import put
from search.study.database import database_storage, database_url
from tests.test_quick_journal import act, said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from optuna.storages import BaseStorage


@pytest.fixture(params=("sqlite", "postgresql"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    typed = f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    return database_url(typed).render_as_string(hide_password=False)


@pytest.fixture
def by_optuna(url: str) -> Iterator[Callable[[], Any]]:
    """Open Optuna's own storage."""
    storages: list[Any] = []

    def opened_by_optuna() -> Any:
        storages.append(get_storage(url))
        return storages[-1]

    yield opened_by_optuna
    for storage in storages:
        storage._backend.engine.dispose()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each worker look at the database whenever it asks: those of a test do so within a moment."""
    monkeypatch.setattr(quick_database, "LOOKED_SECONDS", -1.0)


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
def test_it_says_what_optunas_storage_says(
    url: str, by_optuna: Callable[[], Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    expected = said(by_optuna())
    assert [said(worker._storage) for worker in workers] == [expected, expected]
    assert said(database_storage(url, create=True)) == expected


def test_the_parameters_of_a_trial_are_one_statement(
    url: str, by_optuna: Callable[[], Any], statements: list[str]
) -> None:
    study = opened(url)
    study.optimize(lambda trial: sum(trial.suggest_float(f"p{at}", 0, 1) for at in range(30)), 1)
    trial = study.ask()
    statements.clear()
    for at in range(30):
        trial.suggest_float(f"p{at}", 0, 1)
    assert not statements
    trial.set_user_attr("plan_key", "k")
    assert sum(one.startswith("INSERT INTO trial_params") for one in statements) == 1
    assert len(by_optuna().get_trial(trial._trial_id).params) == 30


def test_a_finished_trial_is_read_once(url: str, statements: list[str]) -> None:
    first, second = opened(url), opened(url)
    first.optimize(lambda trial: trial.suggest_float("x", 0, 1), 5)
    assert len(second.get_trials(deepcopy=False)) == 5
    statements.clear()
    assert len(second.get_trials(deepcopy=False)) == 5
    assert not any("trial_params" in one for one in statements)
    assert len(statements) <= 3


def test_what_was_read_a_moment_ago_is_not_read_again(
    url: str, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_database, "LOOKED_SECONDS", math.inf)
    first, second = opened(url), opened(url)
    assert not second.get_trials(deepcopy=False)
    first.optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    statements.clear()
    assert not second.get_trials(deepcopy=False)
    assert not statements
    second.ask()
    assert [trial.state.name for trial in second.get_trials(deepcopy=False)] == ["COMPLETE", "COMPLETE", "RUNNING"]


def pair_of_studies(url: str) -> list[optuna.Study]:
    """Return two studies of one storage, as a worker has them."""
    storage = database_storage(url, create=True)
    return [optuna.create_study(storage=storage, study_name=name, load_if_exists=True) for name in "st"]


@pytest.mark.parametrize("told", ["a trial of another study", "an attribute of a study"])
def test_who_hears_of_another_worker_sees_what_it_did_before(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (pair_of_studies(url) for _ in range(2))
    ticket = first[1].ask()
    assert second[1].get_trials(deepcopy=False)[0].state.name == "RUNNING"
    assert not second[0].get_trials(deepcopy=False)
    monkeypatch.setattr(quick_database, "LOOKED_SECONDS", math.inf)
    first[0].enqueue_trial({"x": 1})
    if told == "an attribute of a study":
        first[0].set_user_attr("started", value=True)
        assert second[0].user_attrs == {"started": True}
    else:
        first[1].tell(ticket, state=TrialState.FAIL)
        second[1]._storage._looked.pop(second[1]._study_id)  # type: ignore[attr-defined] # it is long ago
        assert second[1].get_trials(deepcopy=False)[0].state.name == "FAIL"
    assert [trial.state.name for trial in second[0].get_trials(deepcopy=False)] == ["WAITING"]


def test_attributes_are_written_together(url: str, by_optuna: Callable[[], Any], statements: list[str]) -> None:
    study = opened(url)
    trial = study.ask()
    trial.set_user_attr("a", 1)
    statements.clear()
    put(trial, {"a": 1, "b": 2.5, "c": "three"})
    assert sum(one.startswith("INSERT") for one in statements) == 1
    assert len(statements) == 2, "one looks whether the trial may be changed"
    expected = {"a": 1, "b": 2.5, "c": "three"}
    assert trial.user_attrs == study.get_trials()[0].user_attrs == by_optuna().get_trial(trial._trial_id).user_attrs
    assert trial.user_attrs == expected
    statements.clear()
    put(trial, expected)
    assert not statements


def test_what_this_process_wrote_to_a_running_trial_is_not_read(url: str, statements: list[str]) -> None:
    study = opened(url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("a", (1, 2))
    trial.set_constraint("limit", 1.0)
    statements.clear()
    seen = study._storage.get_trial(trial._trial_id)
    assert not any("trial_params" in one or "attributes" in one for one in statements)
    again, read = study.get_trials()[-1], opened(url).get_trials()[-1]
    assert seen == again == read
    seen.user_attrs["a"] = 2
    assert study._storage.get_trial(trial._trial_id).user_attrs == {"a": [1, 2]}, "what is given is a copy"


def test_a_running_trial_of_another_worker_is_seen_to_end_at_once(url: str) -> None:
    first, second = opened(url), opened(url)
    trial = first.ask()
    assert [one.state.name for one in second.get_trials(deepcopy=False)] == ["RUNNING"]
    trial.suggest_float("x", 0, 1)
    first.tell(trial, 2.0)
    (seen,) = second.get_trials(deepcopy=False)
    assert (seen.state.name, seen.values, list(seen.params)) == ("COMPLETE", [2.0], ["x"])


def test_the_parameters_of_a_running_trial_are_not_read_again_when_it_ends(url: str, statements: list[str]) -> None:
    first, second = opened(url), opened(url)
    first.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    trial = first.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("a", 1)
    assert list(second.get_trials(deepcopy=False)[-1].params) == ["x"]
    first.tell(trial, 2.0)
    statements.clear()
    seen = second.get_trials(deepcopy=False)[-1]
    assert (seen.state.name, seen.params, seen.distributions) == ("COMPLETE", trial.params, trial.distributions)
    assert not any("param_value" in one for one in statements)


def test_parameters_that_a_running_trial_gets_later_are_read(url: str) -> None:
    first, second = opened(url), opened(url)
    trial = first.ask()
    for name in "xy":
        trial.suggest_float(name, 0, 1)
        second.get_trials(deepcopy=False)
    first.tell(trial, 2.0)
    assert second.get_trials(deepcopy=False)[-1].params == trial.params


def test_of_unfinished_trials_only_what_has_changed_is_read(url: str) -> None:
    first, second = opened(url), opened(url)
    for number in range(2):
        first.enqueue_trial({"x": number})
    running, again = first.ask(), first.ask()
    first.enqueue_trial({"x": 2})
    ids = [trial._trial_id for trial in second.get_trials(deepcopy=False)]
    backend: Any = second._storage._backend  # type: ignore[attr-defined]
    known = second._study_id, set(ids), {ids[-1]}, ids[-1]
    assert backend._states_after(*known) == []
    first.tell(running, 1.0)
    first.ask()
    assert backend._states_after(*known) == [(ids[0], TrialState.COMPLETE), (ids[-1], TrialState.RUNNING)]
    assert [trial.state.name for trial in second.get_trials(deepcopy=False)] == ["COMPLETE", "RUNNING", "RUNNING"]
    first.tell(again, 1.0)
    assert [trial.state.name for trial in second.get_trials(deepcopy=False)] == ["COMPLETE", "COMPLETE", "RUNNING"]


@pytest.mark.parametrize("looks", [False, True])
def test_a_worker_sees_what_it_wrote_at_once(url: str, looks: bool) -> None:  # noqa: FBT001
    study = opened(url)
    trial = study.ask()
    if looks:
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


DISTRIBUTIONS: dict[str, list[Any]] = {
    "ratio": [FloatDistribution(0.0, 1.0), FloatDistribution(0.0, 2.0, step=0.25)],
    "rate": [FloatDistribution(1e-6, 1.0, log=True)],
    "bits": [IntDistribution(2, 32), IntDistribution(1, 64)],
    "kind {a, b}": [CategoricalDistribution(["a", None, True, 0.5, 'quoted "NULL", {x}'])],
}


def add_mixed_trials(storage: BaseStorage, study_id: int, rng: random.Random) -> dict[int, list[str]]:
    """Add trials of all kinds; return the names of their parameters, as they were written."""
    ids = [storage.create_new_trial(study_id) for _ in range(30)]
    params = [(at, name) for at in ids for name in DISTRIBUTIONS if rng.random() < 0.8]
    rng.shuffle(params)  # the rows of the trials alternate, and parameters come in any order
    for at, name in params:
        distribution = rng.choice(DISTRIBUTIONS[name])
        if isinstance(distribution, CategoricalDistribution):
            stored: float = rng.randrange(5)
        else:
            stored = rng.choice((1.0, 2.0, rng.random() / 3 if name in {"ratio", "rate"} else 17.0))
        if name == "rate" and rng.random() < 0.2:
            stored = rng.choice((math.nan, math.inf, 5e-324, 0.1 + 0.2))
        storage.set_trial_param(at, name, stored, distribution)
    for at in ids:
        for step in rng.sample(range(9), rng.randrange(4)):
            storage.set_trial_intermediate_value(at, step, rng.choice((math.nan, math.inf, -math.inf, rng.random())))
        for key in rng.sample("abcd", rng.randrange(4)):
            storage.set_trial_user_attr(at, key, rng.choice((math.nan, [1, None], {"é": "\n,"}, rng.random())))
            storage.set_trial_system_attr(at, key, rng.choice((-math.inf, "8 bit", True)))
        values = [rng.choice((math.inf, -math.inf, rng.random())) for _ in range(2)]
        state = rng.choice((TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
        if state != TrialState.RUNNING:
            storage.set_trial_state_values(at, state, values if state == TrialState.COMPLETE else None)
    return {at: [name for other, name in params if other == at] for at in ids}


@pytest.mark.parametrize("named", [100, 3], ids=["named one by one", "whole tables"])
@pytest.mark.parametrize("seed", range(2))
def test_mixed_trials_are_read_as_optuna_reads_them(
    url: str, by_optuna: Callable[[], Any], seed: int, named: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_naming, "IDS_NAMED", named)
    rng, optunas = random.Random(seed), by_optuna()  # noqa: S311 - of a test
    orders: dict[int, list[str]] = {}
    for name in ("s", "t"):
        orders |= add_mixed_trials(optunas, optuna.create_study(storage=optunas, study_name=name)._study_id, rng)
    ours, optunas = database_storage(url, create=True), by_optuna()
    expected = as_text(optunas)
    assert as_text(ours) == expected
    assert "nan" in expected
    found = [trial for study in ours.get_all_studies() for trial in ours.get_all_trials(study._study_id)]
    assert {one._trial_id: list(one.params) for one in found} == orders
    assert all(list(one.distributions) == list(one.params) for one in found)


def as_text(storage: BaseStorage) -> str:
    """Return all trials as a text, in which floats have every bit and NaNs are equal; Optuna's order is by name."""
    lines = []
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id):
            parts = trial.params, trial.distributions, trial.user_attrs, trial.system_attrs, trial.intermediate_values
            rest = trial.number, trial.state, trial.values, trial.datetime_start, trial.datetime_complete
            lines.append(repr(([sorted(part.items()) for part in parts], rest)))
    return "\n".join(lines)


def test_trials_with_the_same_parameters_share_their_distributions(url: str) -> None:
    opened(url).optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 0, 9), 3)
    first, *others = opened(url).get_trials(deepcopy=False)
    assert all(trial._distributions is first._distributions for trial in others)


def test_a_finished_trial_is_read_once_somebody_asks_for_its_state(url: str, statements: list[str]) -> None:
    first, second = opened(url), opened(url)
    for state in (TrialState.FAIL, TrialState.PRUNED):
        trial = first.ask()
        assert second.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trial.set_user_attr("a", state.name)
        first.tell(trial, state=state)
    statements.clear()
    assert not second.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
    assert not second.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert not any("attributes" in one for one in statements)
    (seen,) = second.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    assert seen.user_attrs == {"a": "FAIL"}
    assert [trial.user_attrs["a"] for trial in second.get_trials(deepcopy=False)] == ["FAIL", "PRUNED"]


def test_new_trials_are_numbered_without_gaps_however_many_create_them(url: str) -> None:
    studies = [opened(url) for _ in range(4)]

    def create(study: optuna.Study) -> list[int]:
        return [study.ask().number for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for several in pool.map(create, studies) for number in several]
    assert sorted(numbers) == list(range(40))


def test_one_of_two_processes_takes_a_waiting_trial(url: str) -> None:
    studies = [opened(url) for _ in range(4)]
    for _ in range(10):
        studies[0].enqueue_trial({"x": 0.5})
    ids = [trial._trial_id for trial in studies[0].get_trials(deepcopy=False)]

    def take(study: optuna.Study) -> list[bool]:
        return [study._storage.set_trial_state_values(at, TrialState.RUNNING) for at in ids]

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(take, studies))
    assert [sum(several) for several in zip(*taken, strict=True)] == [1] * 10


def test_what_does_not_exist_is_a_key_error(url: str) -> None:
    storage = opened(url)._storage
    for act_ in (
        lambda: storage.create_new_trial(99, optuna.trial.create_trial(state=TrialState.RUNNING)),
        lambda: storage.get_all_trials(99),
        lambda: storage.get_trial(99),
        lambda: storage.set_trial_user_attr(99, "a", 1),
        lambda: storage.set_trial_state_values(99, TrialState.FAIL),
    ):
        with pytest.raises(KeyError):
            act_()
