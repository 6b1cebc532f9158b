"""Tasks other than classification, and data in the formats that users have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Examples, Limit, Macs, SizeBytes
from objectives.outputs import outputs
from search import Budget, Recipe, Splits, StudySpec
from search.evaluation.reference import prepared
from search.export import rebuild
from search.loop.run import run
from search.proposals.defaults import resolved
from search.results.confirm import confirm
from search.results.export import export as export_files
from search.results.export import verify_front
from search.study.front import front
from search.study.storage import open_study
from search.study.weights import state_path
from spaces import BitWidths, Imitate, Imitations, PruneRatios, Ranks, Space, Temperatures

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class MeanError:
    """A user's own objective: mean absolute error."""

    examples: Examples
    name: ClassVar[str] = "error"
    direction: ClassVar[str] = "minimize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        return float((outputs(model, self.examples.inputs) - self.examples.labels).abs().mean())

    def on(self, examples: Examples) -> MeanError:
        return replace(self, examples=examples)


@dataclass(frozen=True, slots=True)
class PixelAccuracy:
    """A user's own objective: percentage of correctly classified pixels."""

    examples: Examples
    name: ClassVar[str] = "pixels"
    direction: ClassVar[str] = "maximize"
    is_cost: ClassVar[bool] = False

    def __call__(self, model: nn.Module) -> float:
        correct = outputs(model, self.examples.inputs).argmax(1) == self.examples.labels
        return 100 * float(correct.double().mean())

    def on(self, examples: Examples) -> PixelAccuracy:
        return replace(self, examples=examples)


def regression_examples(count: int, seed: int) -> Examples:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return Examples(inputs, torch.stack([inputs[:, 0] * inputs[:, 1], inputs[:, 2:].sum(1)], 1))


def segmentation_examples(count: int, seed: int) -> Examples:
    inputs = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Examples(inputs, (F.avg_pool2d(inputs, 3, 1, 1) > 0).long()[:, 0])


def trained(model: nn.Module, examples: Examples, loss: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(examples.inputs), examples.labels).backward()
        optimizer.step()
    return model.eval()


def regression() -> StudySpec:
    torch.manual_seed(0)
    splits = Splits(regression_examples(300, 0), regression_examples(100, 1), regression_examples(100, 2))
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    return StudySpec(
        name="regression",
        teacher=trained(net, splits.train, nn.MSELoss()),
        splits=splits,
        space=Space(steps=(PruneRatios(), Ranks(), BitWidths(weights=(4, 8), activations=(8,))), recovery=Imitations()),
        objectives=(MeanError(splits.validation), SizeBytes()),  # type: ignore[arg-type]
        limits=(Limit(Macs(splits.validation.inputs), at_most=1000),),
        recipe=Recipe(epochs=5, batch_size=50, learning_rate=5e-3),
        budget=Budget(4),
    )


def segmentation() -> StudySpec:
    torch.manual_seed(0)
    splits = Splits(segmentation_examples(80, 0), segmentation_examples(40, 1), segmentation_examples(40, 2))
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    return StudySpec(
        name="segmentation",
        teacher=trained(net, splits.train, nn.CrossEntropyLoss()),
        splits=splits,
        space=Space(steps=(PruneRatios(), BitWidths(weights=(4, 8), activations=(8,))), recovery=Temperatures()),
        objectives=(PixelAccuracy(splits.validation), SizeBytes()),  # type: ignore[arg-type]
        recipe=Recipe(epochs=2, batch_size=20, learning_rate=5e-3),
        budget=Budget(4),
    )


def sequence_examples(count: int, seed: int) -> Examples:
    inputs = torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(seed))
    return Examples(inputs, inputs.amax(1)[:, :2])


class Reader(nn.Module):
    """A transformer with torch's attention, which must be unfused before any axis can act on it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.layer(self.stem(x)).mean(1))
        return out


def attention() -> StudySpec:
    torch.manual_seed(0)
    splits = Splits(sequence_examples(300, 0), sequence_examples(100, 1), sequence_examples(100, 2))
    return replace(
        regression(),
        name="attention",
        teacher=trained(Reader(), splits.train, nn.MSELoss()),
        splits=splits,
        objectives=(MeanError(splits.validation), SizeBytes()),  # type: ignore[arg-type]
        limits=(Limit(Macs(splits.validation.inputs), at_most=10_000),),
    )


@pytest.mark.parametrize(
    "spec", [regression(), segmentation(), attention()], ids=["regression", "segmentation", "attention"]
)
def test_a_study_of_another_task_runs_from_teacher_to_verified_file(spec: StudySpec, tmp_path: Path) -> None:
    spec = resolved(spec)
    study = open_study(spec, tmp_path, None, create=True)
    context, reference = prepared(spec, torch.device("cpu"), tmp_path)
    assert run(study, context, tmp_path)
    members = front(study)
    assert members
    assert verify_front([(x, state_path(tmp_path, x.number)) for x in members[:1]], context, tmp_path, reference) == []
    (record,) = confirm(members[:1], context, tmp_path, 1)
    name = spec.objectives[0].name
    assert record[f"test_{name}"]["mean"] > 0
    weights = state_path(tmp_path, members[0].number)
    written = export_files(members[0], context, weights, tmp_path / "out", reference)
    assert written[f"{name}_file"] == pytest.approx(written[f"{name}_torch"], rel=0.01)
    rebuilt = rebuild(spec.teacher, tmp_path / "out")
    assert rebuilt(spec.splits.test.inputs[:3]).shape == spec.teacher(spec.splits.test.inputs[:3]).shape


def test_the_imitation_loss_is_a_weighted_sum_of_both_errors() -> None:
    student, teacher, labels = (torch.full((4, 2), value) for value in (1.0, 3.0, 0.0))
    assert float(Imitate(0.25, 2).loss(student, teacher, labels)) == pytest.approx(0.25 * 4 + 0.75 * 1)
    assert float(Imitate(0.25, 1).loss(student, teacher, labels)) == pytest.approx(0.25 * 2 + 0.75 * 1)
    with pytest.raises(ValueError, match=r"norm 1 or 2, but got 0.5 and 3"):
        Imitate(0.5, 3)
