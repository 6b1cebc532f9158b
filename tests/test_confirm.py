"""Confirmation: longer trainings with several seeds; only they read the test split."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import TYPE_CHECKING, Any

import pytest

from objectives import Examples
from search import Recipe, Splits
from search.evaluation.reference import teacher_file
from search.results.confirm import confirm, weights_of
from search.results.export import export, verify_front
from search.results.file_records import with_records
from search.results.recorded import restored
from search.results.report import report
from search.results.tables import confirmed_table
from search.study.errors import Diverged
from search.study.front import front
from search.study.weights import state_path
from tests.small_study import context, searched, splits, study, watched

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study
    from torch import Tensor

    from search import StudySpec


class Sealed(Examples):
    """Examples that fail when they are read while `sealed` is true."""

    sealed = True

    def __init__(self) -> None:
        self.__dict__["kept"] = splits().test

    @property
    def inputs(self) -> Tensor:
        assert not self.sealed, "the test split was read"
        return self.__dict__["kept"].inputs  # type: ignore[no-any-return]

    @property
    def labels(self) -> Tensor:
        assert not self.sealed, "the test split was read"
        return self.__dict__["kept"].labels  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        assert not self.sealed, "the test split was read"
        return "Sealed()"


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> StudySpec:
    monkeypatch.setattr(Sealed, "sealed", True)
    data = splits()
    return dataclasses.replace(study(4), splits=Splits(data.train, data.validation, Sealed()))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record the epochs and the seed of every training."""
    return watched(monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def found(home: Path) -> Study:
    return searched(study(4), home)


def test_only_confirm_reads_the_test_split(sealed: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched_study, shared = searched(sealed, tmp_path), context(sealed)
    member = front(searched_study)[0]
    reference = teacher_file(shared.subject, shared.spec.runtime, tmp_path)
    verify_front([(member, state_path(tmp_path, member.number))], shared, tmp_path, reference)
    report(searched_study, shared, with_records([member], sealed.runtime, tmp_path), tmp_path, tmp_path / "report")
    export(
        member,
        shared,
        state_path(tmp_path, member.number),
        tmp_path / "out",
        reference,
    )
    with pytest.raises(AssertionError, match="the test split was read"):
        confirm([member], shared, tmp_path, 1)
    monkeypatch.setattr(Sealed, "sealed", False)
    assert "test_top1" in confirm([member], shared, tmp_path, 1)[0]


def test_a_member_is_trained_for_longer_with_every_seed(
    found: Study, home: Path, tmp_path: Path, trainings: list[tuple[int, int]]
) -> None:
    confirm(front(found)[:1], context(study(4)), tmp_path, 3)
    assert [epochs for epochs, _ in trainings] == [4, 4, 4]
    assert len({seed for _, seed in trainings}) == 3


def test_the_recipe_of_the_confirmation_can_be_given(
    found: Study, tmp_path: Path, trainings: list[tuple[int, int]]
) -> None:
    spec = dataclasses.replace(study(4), confirmation=Recipe(epochs=2, batch_size=32))
    confirm(front(found)[:1], context(spec), tmp_path, 1)
    assert [epochs for epochs, _ in trainings] == [2]


def test_mean_and_spread_are_those_of_the_seeds(found: Study, tmp_path: Path) -> None:
    member = front(found)[-1]
    (record,) = confirm([member], context(study(4)), tmp_path, 3)
    runs = [
        json.loads((tmp_path / "confirmed" / f"{member.number}-seed{seed_number}.json").read_text())["values"]
        for seed_number in range(3)
    ]
    assert record["n"] == 3
    for name in ("validation_top1", "test_top1"):
        column = [run[name] for run in runs]
        assert record[name] == {"mean": statistics.fmean(column), "spread": statistics.stdev(column)}


def test_the_values_are_those_of_the_stored_weights(found: Study, tmp_path: Path) -> None:
    shared, member = context(study(4)), front(found)[0]
    (record,) = confirm([member], shared, tmp_path, 1)
    network = shared.subject.finish(restored(member, shared, weights_of(tmp_path, member))[1])
    top1 = shared.spec.objectives[0]
    assert record["validation_top1"] == {"mean": top1(network), "spread": 0.0}
    assert record["test_top1"]["mean"] == dataclasses.replace(top1, examples=splits().test)(network)  # type: ignore[type-var]


def test_the_teacher_is_measured_like_the_members(found: Study, tmp_path: Path) -> None:
    confirm(front(found)[:1], context(study(4)), tmp_path, 1)
    content = json.loads((tmp_path / "confirmed" / "front.json").read_text())
    assert content["teacher"].keys() == {"validation_top1", "test_top1"}
    assert [record["trial"] for record in content["members"]] == [front(found)[0].number]


def test_a_stopped_confirmation_continues_where_it_stopped(
    found: Study, tmp_path: Path, trainings: list[tuple[int, int]]
) -> None:
    members = front(found)[:2]
    first = confirm(members, context(study(4)), tmp_path, 1)
    assert len(trainings) == len(members)
    again = confirm(members, context(study(4)), tmp_path, 2)
    assert len(trainings) == len(set(trainings)) == 2 * len(members)
    assert confirm(members, context(study(4)), tmp_path, 2) == again
    assert len(trainings) == 2 * len(members)
    assert [record["trial"] for record in again] == [record["trial"] for record in first]


def test_another_recipe_is_confirmed_again(found: Study, tmp_path: Path, trainings: list[tuple[int, int]]) -> None:
    member = front(found)[:1]
    confirm(member, context(study(4)), tmp_path, 1)
    confirm(member, context(dataclasses.replace(study(4), confirmation=Recipe(2, 32))), tmp_path, 1)
    assert [epochs for epochs, _ in trainings] == [4, 2]


def test_a_training_that_diverges_is_left_out(
    found: Study, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_the_first(number: int) -> None:
        if number == 1:
            raise Diverged("the loss became nan")

    watched(monkeypatch, fail_the_first)
    member = front(found)[0]
    (record,) = confirm([member], context(study(4)), tmp_path, 2)
    assert record["n"] == 1
    assert record["validation_top1"]["spread"] == 0.0
    assert weights_of(tmp_path, member) == state_path(tmp_path, member.number)


def test_the_table_shows_which_members_are_kept(found: Study) -> None:
    def record(trial: int, top1: float, size: float) -> dict[str, Any]:
        costs = {"size_bytes": size, "macs": 1.0, "top1": 0.0}
        return {"trial": trial, "n": 2, "searched": costs, "validation_top1": {"mean": top1, "spread": 0.5}}

    records = [record(0, 90, 100), record(1, 89, 200), record(2, 95, 200)]
    table = confirmed_table(records, {"validation_top1": 96.0}, study(4), found)
    assert list(table["trial"]) == ["teacher", "0", "1", "2"]
    assert list(table["kept"]) == ["", "yes", "no", "yes"]
    assert list(table["validation_top1"])[:2] == ["96.00", "90.00 ± 0.50"]
    assert list(table["size_bytes"])[1:] == [100, 200, 200]
