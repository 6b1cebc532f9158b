"""Pictures with handwritten digits pasted into them, and what the studies of tasks share.

The digits are those of scikit-learn, each used in one split only.

Legend: `N` pictures, `D` digits in a picture, `S` height and width of a digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from objectives import Examples, Macs, Score, SizeBytes
from objectives.runtimes import named
from objectives.runtimes.runtime import import_extra
from search import Recipe, Splits, StudySpec
from spaces import BitWidths, PruneRatios, Ranks, Space
from studies.fashion_mnist import Block

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces.plan import RecoveryAxis

SIZE, DIGIT, ROOM = 64, 16, 21  # pixels of a picture, of a digit, and of a cell, which a digit never leaves
CELLS = (SIZE // ROOM) ** 2
PICTURES = 4000  # for training; each of the other splits has a tenth of it
SHARES = (1.0, 0.1, 0.1)
OF_SPLITS = (0, 1000, 1400, 1797)  # which digits each split pastes
WEAKEST, NOISE = 0.5, 0.3  # brightness of the weakest digit, and of the strongest noise
LOW, HIGH = 24, 48  # channels of the two levels of features, at a quarter and an eighth of the size


@dataclass(frozen=True, slots=True)
class Pasted:
    """Pictures, and what was pasted into them.

    Attributes
    ----------
    pictures
        Shape (N, 1, SIZE, SIZE), noise and digits.
    ink
        The digits themselves, shape (N, D, S, S), in [0, 1].
    digits
        Which ones they are, shape (N, D), 0 to 9.
    there
        Whether they are in the picture, shape (N, D).
    corners
        Row and column of their first pixels, shape (N, D, 2); with a margin they may lie outside of the picture.
    brightness
        Of all digits of a picture, shape (N,).
    """

    pictures: Tensor
    ink: Tensor
    digits: Tensor
    there: Tensor
    corners: Tensor
    brightness: Tensor

    def pixels(self, column: int, margin: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pictures that have a digit in this column, and its pixels: an index (n, S, S) of (N, H, W)."""
        has = self.there[:, column].nonzero()[:, 0]
        along = torch.arange(DIGIT)
        rows, columns = (self.corners[has, column] + margin).unbind(1)
        return has[:, None, None], rows[:, None, None] + along[:, None], columns[:, None, None] + along


def scenes(
    label: Callable[[Pasted], Any], pictures: int = PICTURES, most: int = 3, margin: int = 0
) -> Splits[Examples]:
    """Return pictures of one to `most` digits with the labels of a task.

    Parameters
    ----------
    label
        Returns the labels of the pictures; or examples, for a task with other inputs than the pictures.
    pictures
        Number of training pictures.
    most
        Digits in a picture, at most.
    margin
        Pixels by which a digit may be outside of the picture.
    """
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    ink, digits = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(classes)[order]
    parts = []
    for seed, share in enumerate(SHARES):
        own = slice(OF_SPLITS[seed], OF_SPLITS[seed + 1])
        made = _pasted(ink[own], digits[own], max(2, round(share * pictures)), seed, most, margin)
        labels = label(made)
        parts.append(labels if isinstance(labels, Examples) else Examples(made.pictures, labels))
    return Splits(*parts)


def _pasted(ink: Tensor, digits: Tensor, count: int, seed: int, most: int, margin: int) -> Pasted:
    """Paste digits into cells of their own."""
    generator = torch.Generator().manual_seed(seed)
    large = F.interpolate(ink.reshape(-1, 1, 8, 8), (DIGIT, DIGIT), mode="bilinear")[:, 0]
    which = torch.randint(len(digits), (count, most), generator=generator)
    many = torch.randint(1, most + 1, (count, 1), generator=generator)
    cells = torch.rand(count, CELLS, generator=generator).argsort(1)[:, :most]
    moves = torch.randint(-margin, ROOM - DIGIT + 1 + margin, (count, most, 2), generator=generator)
    canvas = NOISE * torch.rand(count, SIZE + 2 * margin, SIZE + 2 * margin, generator=generator)
    inside = slice(margin, margin + SIZE)
    made = Pasted(
        pictures=canvas[:, None, inside, inside],
        ink=large[which],
        digits=digits[which],
        there=torch.arange(most) < many,
        corners=ROOM * torch.stack((cells // (SIZE // ROOM), cells % (SIZE // ROOM)), 2) + moves,
        brightness=WEAKEST + (1 - WEAKEST) * torch.rand(count, generator=generator),
    )
    for column in range(most):
        pixels = made.pixels(column, margin)
        shown = made.brightness[pixels[0]] * made.ink[pixels[0][:, 0, 0], column]
        canvas[pixels] += shown  # a view of it is the pictures
    return made


class Levels(nn.Module):
    """A stem and residual blocks; returns features at a quarter (`low`) and an eighth (`high`) of the size."""

    def __init__(self) -> None:
        super().__init__()
        stem = (nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.first, self.second = nn.Sequential(*stem, Block(16, LOW, 2)), Block(LOW, HIGH, 2)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the features by level, each (B, C, h, w), of pictures (B, 1, H, W)."""
        low = self.first(pictures)
        return {"low": low, "high": self.second(low)}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network with the same random weights at every call."""
    torch.manual_seed(0)
    return build()


def standard(name: str, **settings: Any) -> Any:  # noqa: ANN401 - metrics of a package without types
    """Return a metric of torchmetrics, by its name in a module of it.

    Raises
    ------
    ImportError
        If the extra `tasks` is not installed.
    """
    if name == "detection.MeanAveragePrecision":
        import_extra("tasks", "pycocotools")
    module, _, kind = name.rpartition(".")
    return getattr(import_extra("tasks", f"torchmetrics.{module}".rstrip(".")), kind)(**settings)


def percent(value: Tensor) -> float:
    """Return a share in percent."""
    return 100 * float(value)


def study_of(
    name: str,
    teacher: nn.Module,
    splits: Splits[Examples],
    score: Score,
    recovery: RecoveryAxis,
    runtime: str,
    recipe: Recipe | None = None,
) -> StudySpec:
    """Return a search for a good score and a small file."""
    file_runtime = named(runtime)
    return StudySpec(
        name=name if runtime == "onnx" else f"{name}-{runtime}",
        teacher=teacher,
        splits=splits,
        space=Space(
            steps=(PruneRatios(round_to=file_runtime.channels), Ranks(), BitWidths(runtime=file_runtime)),
            recovery=recovery,
        ),
        objectives=(score, SizeBytes(file_runtime)),
        reported=(Macs(splits.validation.example()),),
        recipe=recipe or Recipe(epochs=2, batch_size=32),
        runtime=file_runtime,
    )
