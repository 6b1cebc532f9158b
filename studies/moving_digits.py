"""Video at a camera's pace: which way a digit moves, on clips made of scikit-learn's digits.

slimfront run studies/moving_digits.py:study
slimfront run studies/moving_digits.py:study --set volume=true
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Examples, SizeBytes, Top1, fps
from objectives.runtimes import named
from search import Budget, Recipe, Splits, StudySpec, trained
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures
from studies import digits

FRAMES, SIDE = 6, 16  # of a clip: how many, and how wide and high
WAYS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))  # rows, columns a frame
NOISE = 0.25  # standard deviation that a camera adds to pixels in [0, 1]
TEACHER = Recipe(epochs=20, batch_size=64, learning_rate=3e-3)


class Stacked(nn.Module):
    """The frames of a clip as channels of one image: three convolutions and a linear head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(FRAMES, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, 2, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, len(WAYS))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits (B, ways) of clips (B, frames, H, W)."""
        clips = F.relu(self.stem_norm(self.stem(clips)))
        clips = F.relu(self.first_norm(self.first(clips)))
        clips = F.relu(self.second_norm(self.second(clips)))
        return self.head(clips.mean((2, 3)))  # type: ignore[no-any-return]


class Volume(nn.Module):
    """Convolutions in time and space: three of 3x3x3 and a linear head."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm3d(width)
        self.first = nn.Conv3d(width, width, 3, (1, 2, 2), 1, bias=False)
        self.first_norm = nn.BatchNorm3d(width)
        self.second = nn.Conv3d(width, 2 * width, 3, 2, 1, bias=False)
        self.second_norm = nn.BatchNorm3d(2 * width)
        self.head = nn.Linear(2 * width, len(WAYS))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits (B, ways) of clips (B, 1, frames, H, W)."""
        clips = F.relu(self.stem_norm(self.stem(clips)))
        clips = F.relu(self.first_norm(self.first(clips)))
        clips = F.relu(self.second_norm(self.second(clips)))
        return self.head(clips.mean((2, 3, 4)))  # type: ignore[no-any-return]


def study(trials: int = 20, runtime: str = "onnx", rate: float = 200.0, *, volume: bool = False) -> StudySpec:
    """Search for top-1 against the size of the file, at no less than so many frames a second.

    Parameters
    ----------
    trials
        Trained candidates.
    runtime
        What the files are for: onnx, litert or executorch.
    rate
        Clips that must be answered in a second, each within its time; a camera gives one with every frame.
    volume
        Whether the network convolves in time too.
    """
    executing = named(runtime)
    found = splits(volume=volume)
    torch.manual_seed(0)
    teacher = trained(Volume() if volume else Stacked(), found.train, TEACHER)
    return StudySpec(
        name=f"moving-digits{'-volume' if volume else ''}{'' if runtime == 'onnx' else f'-{runtime}'}",
        teacher=teacher,
        splits=found,
        space=Space(steps=(PruneRatios(), Ranks(), BitWidths(runtime=executing)), recovery=Temperatures()),
        objectives=(Top1(found.validation), SizeBytes(executing)),
        limits=(fps(executing, found.validation.inputs[:50], at_least=rate),),
        recipe=Recipe(epochs=4, batch_size=64),
        budget=Budget(trials=trials),
        runtime=executing,
    )


def splits(*, volume: bool = False) -> Splits:
    """Return clips (B, frames, H, W), with a channel for `volume`, made of the digits study: four of each to train on.

    A digit is in one split only. Where it starts, the way that it takes and the noise are drawn once, seeded.
    """
    images = digits.splits()
    dice = torch.Generator().manual_seed(0)
    parts = (images.train.inputs.repeat(4, 1, 1, 1), images.validation.inputs, images.test.inputs)
    return Splits(*(_clips(part, dice, volume=volume) for part in parts))


def _clips(images: Tensor, dice: torch.Generator, *, volume: bool) -> Examples:
    count, _, side, _ = images.shape
    ways = torch.randint(len(WAYS), (count,), generator=dice)
    steps = torch.tensor(WAYS)[ways]
    room = SIDE - side  # what a digit can move; it starts where its way does not lead out of the frame
    path = FRAMES - 1
    starts = torch.randint(0, room - path + 1, (count, 2), generator=dice) + (steps < 0) * path
    clips = torch.zeros(count, FRAMES, SIDE, SIDE)
    for frame in range(FRAMES):
        corner = starts + frame * steps
        rows = corner[:, :1, None] + torch.arange(side)[None, :, None]
        columns = corner[:, 1:, None] + torch.arange(side)[None, None, :]
        clips[torch.arange(count)[:, None, None], frame, rows, columns] = images[:, 0]
    clips += NOISE * torch.randn(clips.shape, generator=dice)
    return Examples(clips[:, None] if volume else clips, ways)
