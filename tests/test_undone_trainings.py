"""A training that makes a network worse is undone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from search import Recipe
from search.evaluation.before_training import BeforeTraining
from search.evaluation.context import Context
from search.evaluation.early_stopping import _Comparable
from search.proposals.defaults import resolved
from search.results.confirm import confirm
from search.study.front import front, trained
from search.study.records import TRAINED_LOSS, UNDONE
from search.study.trial_words import trial_words
from search.study.weights import restore, state_path
from tests.small_study import context, searched, study

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from torch import nn

RUINOUS = Recipe(epochs=1, batch_size=32, learning_rate=3.0)


def untrained(strength: float = 0.5) -> tuple[Context, nn.Module, BeforeTraining]:
    """Return a context, a network that is compressed equally by all axes, and the network as it is before training."""
    shared = context(study())
    space = shared.spec.space
    model = shared.build(shared.plan(space.uniform(shared.subject.anatomy, (strength,) * len(space.steps))))
    return shared, model, BeforeTraining(shared, model)


def test_a_training_that_ruins_a_network_is_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = dataclasses.replace(study(trials=3), recipe=RUINOUS)
    found = searched(spec, tmp_path)
    shared = context(resolved(spec))
    first = trained(found)[0]
    assert first.user_attrs[UNDONE]
    as_compressed = shared.build(shared.plan(first.params))
    assert first.values[0] == spec.objectives[0](shared.subject.finish(as_compressed))
    assert first.user_attrs[TRAINED_LOSS] == shared.validation_loss_of(as_compressed)
    kept = shared.build(shared.plan(first.params))
    restore(kept, state_path(tmp_path, first.number))
    assert all(torch.equal(tensor, kept.state_dict()[name]) for name, tensor in as_compressed.state_dict().items())
    assert "trial 0: training raised its loss from" in capsys.readouterr().err
    assert "trained, which made it worse, so it is as it was before" in trial_words(first)


def test_a_training_that_improves_a_network_is_kept(tmp_path: Path) -> None:
    found = searched(study(trials=3, epochs=3), tmp_path)
    assert not any(UNDONE in trial.user_attrs for trial in trained(found))


def test_a_larger_loss_with_a_better_metric_is_kept() -> None:
    shared, model, before = untrained(0.9)
    (metric,) = shared.metrics
    value = metric(shared.subject.finish(model))
    for parameter in model.parameters():
        parameter.data.add_(0.1)
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert before.restored(model, before.loss + 1, {metric.name: value + 1}) is None
    assert all(torch.equal(tensor, changed[name]) for name, tensor in model.state_dict().items())
    assert before.restored(model, before.loss, {metric.name: 0.0}) is None, "the loss is no larger"
    assert before.restored(model, before.loss + 1, {metric.name: value}) == {metric.name: value}


def test_a_network_that_is_no_longer_finite_is_restored() -> None:
    shared, model, before = untrained()
    (metric,) = shared.metrics
    value = metric(shared.subject.finish(model))
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    assert shared.validation_loss_of(model) is None
    assert "to one that is not finite and improved no metric" in before.words(None)
    assert before.restored(model, None, {metric.name: float("nan")}) == {metric.name: value}
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_metric_that_was_not_a_number_before_does_not_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, before = untrained()
    monkeypatch.setattr(Context, "measure", lambda *_: {"top1": float("nan")})
    assert before.restored(model, before.loss + 1, {"top1": 5.0}) is None


def test_a_study_of_costs_alone_undoes_by_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "metrics", ())
    _, model, before = untrained()
    assert before.restored(model, before.loss + 1) == {}
    assert before.restored(model, before.loss) is None


def test_a_confirmation_that_ruins_a_member_is_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = dataclasses.replace(study(trials=3), recipe=RUINOUS)
    found = searched(spec, tmp_path)
    (member, *_) = front(found)
    (record,) = confirm([member], context(resolved(spec)), tmp_path, seeds=1)
    assert record["validation_top1"]["mean"] == member.values[0]
    assert f"trial {member.number}, seed 0: training raised its loss from" in capsys.readouterr().err


def test_undone_trainings_are_no_example_of_what_training_gives(tmp_path: Path) -> None:
    found = searched(dataclasses.replace(study(trials=3), recipe=RUINOUS), tmp_path)
    undone = [trial for trial in trained(found) if UNDONE in trial.user_attrs]
    assert undone
    comparable = _Comparable(1)
    for trial in trained(found):
        comparable.add(trial)
    assert not {trial.number for trial in undone} & set(comparable.numbers)
