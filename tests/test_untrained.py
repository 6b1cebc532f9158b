"""Candidates that are measured as they are compressed: where the recipe has no epochs, or the time is short."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from search import Budget, Recipe
from search.evaluation.context import Context
from search.loop.run import run
from search.loop.schedule import affordable, train_promising
from search.proposals.defaults import resolved
from search.results.confirm import confirm
from search.results.file_records import with_records
from search.results.tables import files_note
from search.study.budget_clock import BudgetClock
from search.study.front import front, trained, trained_words
from search.study.records import ASKED, EPOCHS, RATE, TRAINED_LOSS, WEIGHTS
from search.study.storage import open_study
from tests.small_study import context, searched, splits, study, watched

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

TRIALS = 16


def steps_of(main: Study, recipe: Recipe) -> list[int]:
    train = splits().train
    return [recipe.of_length(trial.user_attrs[EPOCHS]).steps(train) for trial in trained(main)]


def asked(main: Study) -> list[FrozenTrial]:
    return [trial for trial in main.get_trials(states=(TrialState.WAITING,)) if ASKED in trial.user_attrs]


def test_without_epochs_candidates_are_measured_as_they_are_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("search.training.fine_tuning.training_steps", lambda *_: pytest.fail("a network was trained"))
    spec = dataclasses.replace(study(trials=4), recipe=Recipe(epochs=0, batch_size=32))
    main = searched(spec, tmp_path)
    assert trained_words(main) == "0 candidates trained, 4 measured without training"
    printed = " ".join(capsys.readouterr().err.split())
    assert "the search ends: 0 candidates trained, 4 measured without training, of 4" in printed
    assert "learning rate" not in printed
    shared = context(resolved(spec))
    top1, size = spec.objectives
    for trial in trained(main):
        network = shared.subject.finish(shared.build(shared.plan(trial.params)))
        assert list(trial.values) == [top1(network), size(network)]
        assert trial.user_attrs[RATE] is None
    members = with_records(front(main), shared.spec.runtime, tmp_path)
    numbers = ", ".join(str(trial.number) for trial, _ in members)
    note = files_note(spec, members)
    assert f"measured without training: trial{'s' * (len(members) > 1)} {numbers}; slimfront confirm" in note
    (record,) = confirm(front(main)[:1], shared, tmp_path, seeds=1)
    assert record["validation_top1"]["mean"] == front(main)[0].values[0]


def test_a_confirmation_trains_what_the_search_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = Recipe(epochs=2, batch_size=32, learning_rate=5e-3)
    spec = dataclasses.replace(study(trials=2), recipe=Recipe(epochs=0, batch_size=32), confirmation=longer)
    main = searched(spec, tmp_path)
    trainings = watched(monkeypatch)
    confirm(front(main)[:1], context(resolved(spec)), tmp_path, seeds=1)
    assert [epochs for epochs, _ in trainings] == [2]


def test_in_a_short_time_some_are_measured_untrained_and_the_most_promising_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (1.0, 2.0, 1.0))  # a step takes a second
    spec = resolved(dataclasses.replace(study(epochs=50), budget=Budget(trials=TRIALS, cpu_seconds=80.0)))
    main, made = open_study(spec, tmp_path, None, create=True), context(spec)
    assert run(main, made, tmp_path)
    printed = " ".join(capsys.readouterr().err.split())
    assert "about 2 candidates can be trained, since one takes 28 s with 25 steps; so about 8 are measured" in printed
    assert "the remaining time is used to train 2 of the candidates" in printed
    steps = steps_of(main, spec.recipe)
    assert not any(steps[:8])
    longest = [count for count in steps if count]
    assert len(longest) == 2
    assert all(25 <= count <= 40 for count in longest), "as far as the time allows"
    first = {tuple(trial.params.items()): trial for trial in trained(main)[:8]}
    for trial in trained(main):
        if trial.user_attrs[EPOCHS]:
            before = first[tuple(trial.params.items())]
            assert trial.values[1] == before.values[1]
            assert trial.user_attrs[WEIGHTS] != before.user_attrs[WEIGHTS]


def test_few_trials_are_all_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (1.0, 2.0, 1.0))
    """Nor are they measured untrained where measuring takes most of the time."""
    made = context(study(epochs=50))
    for trials, untrained in ((TRIALS - 1, False), (TRIALS, True), (None, True)):
        clock = BudgetClock(Budget(trials=trials, cpu_seconds=80.0))
        assert (affordable(optuna.create_study(), made, clock).epochs == 0) == untrained
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (0.1, 30.0, 0.0))
    clock = BudgetClock(Budget(None, cpu_seconds=80.0))
    assert affordable(optuna.create_study(), made, clock).steps(splits().train) == 25


def test_one_worker_alone_chooses_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, made = searched(dataclasses.replace(study(), recipe=Recipe(epochs=0)), tmp_path), context(study(epochs=50))
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (1.0, 2.0, 1.0))
    for seconds, expected in ((3.0, 0), (10.0, 1)):
        assert train_promising(main, made, BudgetClock(Budget(None, cpu_seconds=seconds))) == expected
    (waiting,) = asked(main)
    assert made.spec.recipe.of_length(waiting.user_attrs[ASKED]).steps(splits().train) == pytest.approx(7, abs=1)
    assert train_promising(main, made, BudgetClock(Budget(None, cpu_seconds=1000.0))) == 0


def test_a_network_that_can_be_trained_comes_before_one_that_hardly_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = searched(dataclasses.replace(study(), recipe=Recipe(epochs=0)), tmp_path)
    best, worst = front(main)
    losses = [trial.user_attrs[TRAINED_LOSS] for trial in (best, worst)]
    assert losses[0] < losses[1]
    monkeypatch.setattr(Context, "seconds_a_candidate", lambda *_: (1.0, 0.0, 0.0))
    made = context(study(epochs=50))
    enqueued: list[dict[str, float]] = []
    monkeypatch.setattr("search.loop.schedule.enqueue", lambda _, params, __: enqueued.append(params))
    for bound in losses[::-1]:
        monkeypatch.setattr("search.loop.schedule.MAX_TRAINABLE_LOSS", bound)
        assert train_promising(main, made, BudgetClock(Budget(None, cpu_seconds=40.0))) == 1
    assert enqueued == [worst.params, best.params]
