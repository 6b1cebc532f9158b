"""What is searched depends on no unit: neither of the loss, nor of the costs, nor on the batch or the classes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives import SizeBytes
from search import Budget, DraftStart
from search.proposals.draft_records import draft_of
from search.study.budget_clock import BudgetClock
from spaces import Temperatures
from spaces.axes.distill import Distill
from tests.small_study import CLASSES, context, study, teacher

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from objectives.layers import Parts
    from search import StudySpec


@dataclasses.dataclass(frozen=True, slots=True)
class ScaledLoss(Distill):
    """Distillation whose loss has another unit."""

    unit: float = 1.0

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return self.unit * super(ScaledLoss, self).loss(student, teacher, labels)


@dataclasses.dataclass(frozen=True, slots=True)
class ScaledTemperatures(Temperatures):
    """The recovery axis of this loss."""

    unit: float = 1.0

    def suggest(self, trial: BaseTrial) -> ScaledLoss:
        drawn = super(ScaledTemperatures, self).suggest(trial)
        return ScaledLoss(drawn.temperature, drawn.weight, self.unit)


@dataclasses.dataclass(frozen=True, slots=True)
class ScaledSize(SizeBytes):
    """The size in another unit."""

    unit: float = 1.0

    def __call__(self, model: nn.Module) -> float:
        return self.unit * super(ScaledSize, self).__call__(model)

    def foreseen(self, parts: Parts) -> np.ndarray:
        return self.unit * super(ScaledSize, self).foreseen(parts)


class ManyClasses(nn.Module):
    """The teacher with a hundred times as many classes, of which the new ones are never the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = teacher()

    def forward(self, images: Tensor) -> Tensor:
        return functional.pad(self.net(images), (0, 99 * CLASSES), value=-1e4)


def drafted(spec: StudySpec) -> tuple[list[dict[str, float]], list[dict[str, float]], list[float]]:
    """Return the initial designs, all plans of the draft, and their losses."""
    main = optuna.create_study(study_name="draft", storage=optuna.storages.InMemoryStorage())
    designs = DraftStart(plans=6, scored=30)(context(spec), main, BudgetClock(Budget()))
    draft = draft_of(main)
    assert draft is not None
    strip = "net."
    names = [{name.replace(strip, ""): value for name, value in trial.params.items()} for trial in draft.trials]
    designs = [{name.replace(strip, ""): value for name, value in params.items()} for params in designs]
    return designs, names, [trial.values[0] for trial in draft.trials]


def variants() -> dict[str, StudySpec]:
    given = study()
    top1, size = given.objectives
    assert isinstance(size, SizeBytes)
    spaces = {
        unit: dataclasses.replace(given.space, recovery=ScaledTemperatures(unit=unit)) for unit in (0.001, 1000.0)
    }
    sizes = {unit: ScaledSize(size.runtime, unit=unit) for unit in (2.0**-30, 2.0**30)}
    return {
        "losses of a thousandth": dataclasses.replace(given, space=spaces[0.001]),
        "losses a thousand times as large": dataclasses.replace(given, space=spaces[1000.0]),
        "costs in a large unit": dataclasses.replace(given, objectives=(top1, sizes[2.0**-30])),
        "costs in a small unit": dataclasses.replace(given, objectives=(top1, sizes[2.0**30])),
        "a batch of a hundred times as many": dataclasses.replace(
            given, recipe=dataclasses.replace(given.recipe, batch_size=3200)
        ),
        "a hundred times as many classes": dataclasses.replace(given, teacher=ManyClasses().eval()),
    }


@pytest.mark.parametrize("name", variants())
def test_other_units_give_the_same_plans(name: str) -> None:
    designs, plans, losses = drafted(study())
    other_designs, other_plans, other_losses = drafted(variants()[name])
    assert other_plans == plans
    assert other_designs == designs
    np.testing.assert_allclose(other_losses, losses, rtol=1e-3, atol=1e-5)


def test_a_proxy_loss_is_0_for_the_teacher_and_1_for_the_mean_answer() -> None:
    made = context(study())
    assert made.proxy_loss(made.subject.model) == pytest.approx(0)
    inputs = made.proxy_loss._inputs
    with torch.no_grad():
        mean = made.subject.model(inputs).mean(0)

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return mean.expand(len(images), -1)  # type: ignore[no-any-return]

    assert made.proxy_loss(Mean()) == pytest.approx(1)
