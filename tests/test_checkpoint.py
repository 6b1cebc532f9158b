"""A training that is stopped goes on from its last checkpoint, and gives what it would have given."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from torch import nn

import search.training.checkpoint
from search import Budget
from search.study.front import trained
from search.study.records import CHECKPOINT, KEY, RERUN
from search.training.checkpoint import Checkpoint
from search.training.fine_tuning import TeacherOutputs, fine_tune
from tests.small_study import searched, splits, study

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.training.checkpoint, "CHECKPOINT_SECONDS", 0.0)


class Stop(Exception):
    """The end of a process, as far as a training sees it."""


def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 4))


def tuned(checkpoint: Checkpoint | None, stop_at: float = 2.0, **settings: Any) -> tuple[dict[str, Tensor], int]:
    """Return the weights after a training, and the number of steps; it may stop at a share of its steps."""
    spec, model, shares = study(), network(), list[float]()

    def progress(share: float) -> None:
        shares.append(share)
        if share >= stop_at:
            raise Stop

    recipe = dataclasses.replace(spec.recipe, epochs=3, **settings)
    recovery = spec.space.recovery.suggest(optuna.trial.FixedTrial(spec.space.recovery.usual()))
    train = splits().train
    fine_tune(
        model, TeacherOutputs(copy.deepcopy(spec.teacher), train), train, recovery, recipe, 7, progress, checkpoint
    )
    return model.state_dict(), len(shares)


@pytest.mark.parametrize(
    "settings",
    [{}, {"augment": noisy}, {"optimizer": torch.optim.Adam}, {"optimizer": torch.optim.Adadelta}],
    ids=["plain", "augmented", "Adam", "Adadelta"],
)
@pytest.mark.parametrize("stop_at", [0.1, 0.5, 0.9])
def test_a_stopped_training_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, stop_at: float, settings: dict[str, Any]
) -> None:
    whole, steps = tuned(None, **settings)
    path = tmp_path / "a.safetensors"
    with pytest.raises(Stop):
        tuned(Checkpoint(path, "a"), stop_at, **settings)
    resumed, left = tuned(Checkpoint(path, "a"), **settings)
    assert 0 < left < steps
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("damage", ["another training", "cut", "garbage", "empty"])
def test_a_checkpoint_that_does_not_fit_is_left_out(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(Stop):
        tuned(Checkpoint(path, "b" if damage == "another training" else "a"), 0.5)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:500], "garbage": b"x" * 100, "empty": b""}.get(damage, content))
    whole, steps = tuned(None)
    again, done = tuned(Checkpoint(path, "a"))
    assert done == steps
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert ("is damaged" in capsys.readouterr().err) == (damage != "another training")


def test_no_checkpoint_is_written_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.training.checkpoint, "CHECKPOINT_SECONDS", 60.0)
    tuned(Checkpoint(tmp_path / "a.safetensors", "a"))
    assert not list(tmp_path.iterdir())


def test_a_trial_that_is_run_again_goes_on_and_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(study(3, epochs=4), limits=(), sampler=optuna.samplers.RandomSampler)
    whole = searched(spec, tmp_path / "whole")
    steps = [0]

    def counted(self: Checkpoint, *_: Any) -> None:
        steps[0] += 1
        after(self, *_)
        if steps[0] == 30:
            raise KeyboardInterrupt

    after = Checkpoint.after
    monkeypatch.setattr(Checkpoint, "after", counted)
    searched(spec, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped" / "checkpoints").iterdir())) == 1
    found = searched(dataclasses.replace(spec, budget=Budget(3)), tmp_path / "stopped")
    results = [sorted((trial.user_attrs[KEY], trial.values) for trial in trained(one)) for one in (found, whole)]
    assert results[0] == results[1]
    assert steps[0] == 3 * 4 * 6
    assert not list((tmp_path / "stopped" / "checkpoints").iterdir())
    assert [trial.number for trial in found.trials if RERUN in trial.user_attrs]
    assert not any(CHECKPOINT in trial.user_attrs for trial in found.trials)
