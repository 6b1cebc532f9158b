"""Candidates that are measured as they are compressed, since the recipe has no epochs."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from search import Recipe
from search.cli import main
from search.evaluation.trial import run_trial
from search.proposals.defaults import resolved
from search.results.confirm import confirm
from search.results.file_records import with_records
from search.results.tables import files_note
from search.study.front import front, trained, trained_words
from search.study.records import PLAN, RATE, REPLAY
from search.study.storage import open_study
from search.study.trial_words import trial_words
from tests import small_study
from tests.small_study import context, searched, study, watched

if TYPE_CHECKING:
    from pathlib import Path


def test_without_epochs_candidates_are_measured_as_they_are_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("search.training.fine_tuning.training_steps", lambda *_: pytest.fail("a network was trained"))
    spec = dataclasses.replace(study(trials=4), recipe=Recipe(epochs=0, batch_size=32))
    found = searched(spec, tmp_path)
    assert trained_words(found) == "0 candidates trained, 4 measured without training"
    printed = " ".join(capsys.readouterr().err.split())
    assert "the search ends: 0 candidates trained, 4 measured without training, of 4" in printed
    assert "learning rate" not in printed
    shared = context(resolved(spec))
    top1, size = spec.objectives
    for trial in trained(found):
        network = shared.subject.finish(shared.build(shared.plan(trial.params)))
        assert list(trial.values) == [top1(network), size(network)]
        assert trial.user_attrs[RATE] is None
        assert trial_words(trial).startswith(f"trial {trial.number}: measured without training; size_bytes")
    members = with_records(front(found), shared.spec.runtime, tmp_path)
    numbers = ", ".join(str(trial.number) for trial, _ in members)
    note = files_note(spec, members)
    assert f"measured without training: trial{'s' * (len(members) > 1)} {numbers}; slimfront confirm" in note


def test_a_confirmation_trains_what_the_search_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = Recipe(epochs=2, batch_size=32, learning_rate=5e-3)
    spec = dataclasses.replace(study(trials=2), recipe=Recipe(epochs=0, batch_size=32), confirmation=longer)
    found = searched(spec, tmp_path)
    trainings = watched(monkeypatch)
    confirm(front(found)[:1], context(resolved(spec)), tmp_path, seeds=1)
    assert [epochs for epochs, _ in trainings] == [2]
    (member, *_) = front(found)
    assert context(resolved(spec)).plan(member.params).words() == member.user_attrs[PLAN], "the recovery that is told"


def test_a_confirmation_without_epochs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    monkeypatch.chdir(tmp_path)
    words = ["my_study.py:study", "--set", "epochs=0"]
    assert main(["run", *words, "--trials", "2", "--unverified"]) == 0
    assert main(["confirm", *words]) == 2
    assert "nothing is trained in 0 epochs; give the study a confirmation" in " ".join(capsys.readouterr().err.split())


def test_plans_that_differ_in_their_recovery_alone_are_measured_once(tmp_path: Path) -> None:
    spec = dataclasses.replace(study(trials=2), recipe=Recipe(epochs=0, batch_size=32))
    (first, *_) = trained(searched(spec, tmp_path))
    shared = context(resolved(spec))
    found = open_study(shared.spec, tmp_path, None, create=True)
    ended = [trial.number for trial in found.trials if trial.state.is_finished()]
    found.enqueue_trial(first.params | {"distill/temperature": 7.5})
    while found.get_trials(states=(TrialState.WAITING,)):
        trial = found.ask()
        with contextlib.suppress(optuna.TrialPruned):
            found.tell(trial, run_trial(trial, shared, tmp_path, shared.spec.recipe, lambda _: None))
    last = found.trials[-1]
    assert last.number not in ended
    assert last.user_attrs[REPLAY] == first.number
