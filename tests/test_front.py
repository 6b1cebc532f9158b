"""The Pareto front, and the table of candidates."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import optuna
import pytest

from objectives import SizeBytes, Top1
from search.results.candidates import candidates
from search.results.page.course import hypervolumes
from search.study.attributes import keyed
from search.study.front import front, trained
from search.study.records import EXCESS, PLAN, REASON, REPLAY, SECONDS, VALUES
from tests.small_study import splits, study

if TYPE_CHECKING:
    from optuna.trial import TrialState

    Attributes = dict[str, object]

SPEC = dataclasses.replace(study(), objectives=(Top1(splits().validation), SizeBytes()), limits=())
COMPLETE, REJECTED, FAILED = (getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "PRUNED", "FAIL"))


def add(
    to: optuna.Study, values: tuple[float, float] | None, attributes: Attributes, state: TrialState = COMPLETE
) -> None:
    """Add a finished trial with measured values."""
    measured = dict(zip(("top1", "size_bytes"), values, strict=True)) if values else {}
    to.add_trial(
        optuna.trial.create_trial(
            state=state, values=values if state == COMPLETE else None, user_attrs=keyed(VALUES, measured) | attributes
        )
    )


@pytest.fixture
def found() -> optuna.Study:
    """Return a study whose front is trials 1, 3 and 4; trial 3 dominates trial 7."""
    study_of = optuna.create_study(directions=["maximize", "minimize"])
    add(study_of, (80, 500), {PLAN: "a", SECONDS: 1.5})
    add(study_of, (90, 400), {PLAN: "b", **keyed(EXCESS, {"macs <= 3": -0.5})})
    add(study_of, (90, 400), {PLAN: "b", REPLAY: 1})
    add(study_of, (95, 900), {})
    add(study_of, (50, 100), {})
    add(study_of, (99, 50), {REASON: "exceeds the limit macs <= 3", **keyed(EXCESS, {"macs <= 3": 0.5})}, REJECTED)
    add(study_of, None, {REASON: "the loss became nan"}, FAILED)
    add(study_of, (94, 900), {})
    return study_of


def test_the_front_holds_the_non_dominated_trials_with_the_best_first(found: optuna.Study) -> None:
    assert [trial.number for trial in front(found)] == [3, 1, 4]


def test_of_equal_values_the_first_trial_is_the_member(found: optuna.Study) -> None:
    add(found, (50, 100), {})
    assert [trial.number for trial in front(found)] == [3, 1, 4]


def test_an_objective_to_minimize_starts_the_front_at_its_smallest() -> None:
    study_of = optuna.create_study(directions=["minimize", "minimize"])
    for values in ((3.0, 1.0), (1.0, 3.0), (2.0, 2.0)):
        add(study_of, values, {})
    assert [trial.number for trial in front(study_of)] == [1, 2, 0]


def test_replays_and_rejected_trials_do_not_count_as_trained(found: optuna.Study) -> None:
    assert [trial.number for trial in trained(found)] == [0, 1, 3, 4, 7]


def test_the_table_has_a_row_for_every_finished_trial(found: optuna.Study) -> None:
    found.ask()
    table = candidates(found, SPEC).set_index("number")
    assert list(table["state"]) == [
        "trained", "trained", "same as 1", "trained", "trained", "rejected", "failed", "trained"
    ]  # fmt: skip
    assert list(table.index[table["on_front"]]) == [1, 3, 4]
    assert list(table.index[table["feasible"].eq(False)]) == [5]  # noqa: FBT003 - some are None
    assert table.loc[5, "reason"] == "exceeds the limit macs <= 3"
    assert (table.loc[0, "top1"], table.loc[0, "size_bytes"], table.loc[0, "cpu_seconds"]) == (80, 500, 1.5)


def test_a_study_without_trials_has_an_empty_front_and_table() -> None:
    empty = optuna.create_study(directions=["maximize", "minimize"])
    assert front(empty) == []
    assert candidates(empty, SPEC).empty


def test_the_hypervolume_is_one_for_the_quality_of_the_teacher_at_the_smallest_cost() -> None:
    """In the middle of both scales, top-1 and the logarithm of the size, a quarter of the box is dominated."""
    of = optuna.create_study(directions=["maximize", "minimize"])
    for values in ((70.0, 1000.0), (80.0, 100.0), (90.0, 10.0)):
        add(of, values, {SECONDS: 2.0})
    found = hypervolumes(of, SPEC, {"top1": 90.0, "size_bytes": 1000.0})
    assert found == [(2.0, 0.0, 0), (4.0, pytest.approx(0.25), 1), (6.0, pytest.approx(1.0), 2)]
