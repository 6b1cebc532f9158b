"""A study as a user would write it: two convolutions on 8x8 images, trained in about a second.

The tests of the command line copy this file to a separate folder and run it there.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Examples, Limit, Macs, SizeBytes, Top1
from search import Budget, Recipe, Splits, StudySpec, UniformStart
from search.evaluation.context import Context
from search.evaluation.reference import bounded
from search.evaluation.subject import Subject
from search.loop.run import run
from search.proposals.defaults import resolved
from search.study.storage import open_study
from search.training.fine_tuning import fine_tune
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from optuna import Study

CLASSES = 4


class Net(nn.Module):
    """Two convolutions with BatchNorm, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 4) of images (B, 1, 8, 8)."""
        images = F.relu(self.first_norm(self.first(images)))
        images = F.relu(self.second_norm(self.second(images)))
        return self.head(F.max_pool2d(images, 2).flatten(1))  # type: ignore[no-any-return]


def examples(count: int, seed: int) -> Examples:
    """Return noisy copies of one pattern per class."""
    patterns = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return Examples(patterns[labels] + 1.5 * noise, labels)


@functools.cache
def splits() -> Splits[Examples]:
    """Return 192 training, 100 validation and 100 test images."""
    return Splits(examples(192, 0), examples(100, 1), examples(100, 2))


@functools.cache
def teacher() -> nn.Module:
    """Return the trained teacher, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    train = splits().train
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(train.inputs), train.labels)
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval()


def study(trials: int = 4, share: float = 0.6, epochs: int = 1) -> StudySpec:
    """Return a study of top-1 against file size, with at most a share of the teacher's multiply-adds."""
    data = splits()
    macs = Macs(data.validation.inputs)
    return StudySpec(
        name="small",
        teacher=teacher(),
        splits=data,
        space=Space(
            steps=(PruneRatios(), Ranks(), BitWidths(weights=(2, 4, 8), activations=(8,))), recovery=Temperatures()
        ),
        objectives=(Top1(data.validation), SizeBytes()),
        limits=(Limit(macs, at_most=share * macs(teacher())),),
        recipe=Recipe(epochs=epochs, batch_size=32, learning_rate=5e-3),
        budget=Budget(trials=trials),
        start=UniformStart(),
        calibration=64,
    )


def context(spec: StudySpec) -> Context:
    """Return the context of a study."""
    return Context(spec, Subject(spec, torch.device("cpu")))


def searched(spec: StudySpec, folder: Path) -> Study:
    """Run or resume the study in the folder, and return it."""
    folder.mkdir(exist_ok=True)
    spec = resolved(spec)
    study = open_study(spec, folder, None, create=True)
    shared = bounded(study, context(spec))
    run(study, shared, folder)
    return study


def watched(patch: pytest.MonkeyPatch, before: Callable[[int], None] | None = None) -> list[tuple[int, int]]:
    """Record epochs and seed of every later training; call `before` with the number of each, from 1."""
    trainings: list[tuple[int, int]] = []

    def record(*arguments: Any) -> None:
        recipe, seed = arguments[4:6]
        trainings.append((recipe.epochs, seed))
        if before is not None:
            before(len(trainings))
        fine_tune(*arguments)

    patch.setattr("search.evaluation.context.fine_tune", record)
    return trainings
