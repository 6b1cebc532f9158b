"""A label of a stream that is NaN is named by its index where it is read, unless the loss leaves it out."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import optuna
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.utils.data import DataLoader, Dataset

from objectives import Examples, Parameters
from objectives.samples import NotFinite, ensure_finite
from objectives.scores import Score
from objectives.trees import PerExample
from search import Recipe
from search.evaluation.reference import measure_teacher
from search.study.errors import Diverged, MachineFault, reason_of
from search.training.fine_tuning import TeacherOutputs, fine_tune
from spaces import Imitate, Imitations
from tests import small_study
from tests.small_study import context
from tests.test_bad_numbers import masked_error, numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives import Data

BAD, COUNT = 437, 500


class Numbers(Dataset[tuple[Tensor, Tensor]]):
    """Images of 8x8 with four numbers each, of which one is not known."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((1, 8, 8), index / COUNT), torch.full((4,), math.nan if index == BAD else index / COUNT)


def tuned(data: Data, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    recipe = Recipe(epochs=1, batch_size=50, learning_rate=1e-3)
    teacher = TeacherOutputs(small_study.teacher(), data)
    fine_tune(small_study.Net(), teacher, data, Imitate(loss_of=loss), recipe, seed=0)


def test_a_training_names_the_label_and_no_plan_is_charged() -> None:
    with pytest.raises(NotFinite, match=f"all labels must be finite, but the example at index {BAD} that the") as found:
        tuned(Examples.of(Numbers()), F.mse_loss)
    with pytest.raises(MachineFault, match=f"index {BAD}"):
        reason_of(found.value)
    loader = DataLoader(Numbers(), batch_size=50, shuffle=True)
    with pytest.raises(NotFinite, match=f"the example at index {BAD}"):
        tuned(Examples.of(loader), F.mse_loss)


def test_a_loss_that_leaves_the_label_out_is_taken() -> None:
    tuned(Examples.of(Numbers()), masked_error)


def test_a_loss_that_is_not_finite_for_another_reason_is_not_the_labels_fault() -> None:
    def without_answer(outputs: Tensor, labels: Tensor) -> Tensor:
        outputs.data.fill_(math.nan)
        return masked_error(outputs, labels)

    with pytest.raises(Diverged):
        tuned(Examples.of(Numbers()), without_answer)


def test_the_teachers_values_name_the_label_of_the_validation_split() -> None:
    data = Examples.of(Numbers())
    given = numbers(Imitations())
    known = given.splits.validation
    splits = dataclasses.replace(given.splits, train=known, validation=data, test=known)
    score = Score(data, "error", F.mse_loss, "minimize")
    shared = context(dataclasses.replace(given, splits=splits, objectives=(score, Parameters())))
    with pytest.raises(NotFinite, match=f"the example at index {BAD} that the validation split gave"):
        measure_teacher(optuna.create_study(), shared)


def test_labels_that_are_a_list_are_looked_at_one_by_one() -> None:
    boxes = PerExample([torch.zeros(2, 4), torch.zeros(0, 4), torch.full((1, 4), math.inf)])
    with pytest.raises(NotFinite, match="the example at index 12 that the training split gave"):
        ensure_finite(boxes, "training split", range(10, 13), "labels")
    ensure_finite(boxes[:2], "training split", None, "labels")
