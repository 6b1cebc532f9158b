"""A study that an earlier version stored can be opened: its definition does not depend on the modules of classes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from optuna.samplers import RandomSampler
from torch import Tensor, nn

from objectives import Examples, Limit, Macs, SizeBytes, Top1
from search import Recipe, Splits, StudySpec
from search.proposals.defaults import resolved
from search.study.attributes import numbers_of
from search.study.definition import define, define_value, define_value_with_modules, differences
from search.study.errors import UserError
from search.study.front import need_front
from search.study.records import PREDICTED, VALUES
from search.study.storage import open_study
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures

if TYPE_CHECKING:
    from torch import Generator

STORED = Path(__file__).parent / "stored" / "journal-0.1.log"  # written by version 0.1 with the study below


def flipped(inputs: Tensor, generator: Generator) -> Tensor:
    del generator
    return inputs.flip(-1)


def numbered(*shape: int) -> Tensor:
    """Return numbers that every processor computes exactly."""
    return (torch.arange(torch.Size(shape).numel()) % 7 / 8).reshape(shape)


def spec() -> StudySpec:
    teacher = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2)).eval()
    for parameter in teacher.parameters():
        parameter.data = numbered(*parameter.shape)
    data = Examples(numbered(16, 1, 4, 4), torch.arange(16) % 2)
    space = Space(steps=(PruneRatios(), Ranks(), BitWidths()), recovery=Temperatures())
    limits = (Limit(Macs(data.inputs), at_most=1e6),)
    recipe = Recipe(augment=flipped)
    return StudySpec(
        "stored", teacher, Splits(data, data, data), space, (Top1(data), SizeBytes()), limits, recipe=recipe,
        calibration=8,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(STORED, tmp_path / "journal.log")
    return tmp_path


@pytest.mark.parametrize("create", [True, False])
def test_a_study_of_version_0_1_opens_with_its_front(folder: Path, *, create: bool) -> None:
    (trial,) = need_front(open_study(resolved(spec()), folder, None, create=create), spec())
    assert trial.values == [50.0, 640.0]
    assert numbers_of(trial, VALUES)["macs"] == 200.0
    assert numbers_of(trial, PREDICTED) == {"latency_ms": 1.25}
    assert trial.params["prune/0"] == 0.375


def test_a_difference_from_version_0_1_is_reported(folder: Path) -> None:
    other = dataclasses.replace(spec(), sampler=RandomSampler, recipe=Recipe(epochs=2.5, augment=flipped))
    message = "recipe.epochs was 3, is 2.5; undo"
    with pytest.raises(UserError, match=message):
        open_study(resolved(other), folder, None, create=True)


def test_names_are_equal_with_and_without_their_module_but_numbers_are_not() -> None:
    assert differences({"optimizer": "adamw.AdamW"}, {"optimizer": "AdamW"}) == []
    assert differences({"make": "sampler.Made.inner"}, {"make": "Made.inner"}) == []
    assert differences({"epochs": "2.5"}, {"epochs": "5"}) == ["epochs was 2.5, is 5"]


def test_a_definition_contains_no_names_of_modules() -> None:
    class_names = {value for value in define(resolved(spec())).values() if "AdamW" in value or "Draft" in value}
    assert class_names == {"AdamW", "DraftStart"}


def test_the_definition_of_a_recipe_in_version_0_1_is_reproduced() -> None:
    recipe = Recipe(augment=flipped)
    assert define_value_with_modules(recipe) == define_value(recipe) | {
        "Recipe.optimizer": "adamw.AdamW",
        "Recipe.augment": "test_stored_studies.flipped",
    }
