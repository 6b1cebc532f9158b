"""A video study at a camera's frame rate: classify the direction in which one of scikit-learn's digits moves.

slimfront run studies/moving_digits.py:study
slimfront run studies/moving_digits.py:study --set volume=true
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's usual name

from objectives import Examples, SizeBytes, Top1, fps
from objectives.runtimes import named
from search import Budget, Recipe, Splits, StudySpec, trained
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures
from studies import digits

FRAMES = 6  # of a clip
SIDE = 16  # pixels: height and width of a clip
DIRECTIONS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))  # rows, columns per frame
NOISE = 0.25  # standard deviation of the simulated camera noise, for pixels in [0, 1]
CLIPS_PER_DIGIT = 4  # made of each image of the training split
TIMED_CLIPS = 50  # clips on which the frame time is measured
TEACHER_RECIPE = Recipe(epochs=20, batch_size=64, learning_rate=3e-3)


class Stacked(nn.Module):
    """A network that takes the frames of a clip as the channels of one image: three convolutions and a linear head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(FRAMES, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, 2, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, len(DIRECTIONS))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits (B, directions) of clips (B, frames, H, W)."""
        clips = F.relu(self.stem_norm(self.stem(clips)))
        clips = F.relu(self.first_norm(self.first(clips)))
        clips = F.relu(self.second_norm(self.second(clips)))
        return self.head(clips.mean((2, 3)))  # type: ignore[no-any-return]


class Volume(nn.Module):
    """A network that convolves in time and space: three 3x3x3 convolutions and a linear head."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm3d(width)
        self.first = nn.Conv3d(width, width, 3, (1, 2, 2), 1, bias=False)
        self.first_norm = nn.BatchNorm3d(width)
        self.second = nn.Conv3d(width, 2 * width, 3, 2, 1, bias=False)
        self.second_norm = nn.BatchNorm3d(2 * width)
        self.head = nn.Linear(2 * width, len(DIRECTIONS))

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits (B, directions) of clips (B, 1, frames, H, W)."""
        clips = F.relu(self.stem_norm(self.stem(clips)))
        clips = F.relu(self.first_norm(self.first(clips)))
        clips = F.relu(self.second_norm(self.second(clips)))
        return self.head(clips.mean((2, 3, 4)))  # type: ignore[no-any-return]


def study(trials: int = 20, runtime: str = "onnx", rate: float = 200.0, *, volume: bool = False) -> StudySpec:
    """Search for high top-1 and a small file, with a limit on the time per clip.

    Parameters
    ----------
    trials
        Number of candidates to train.
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    rate
        Clips per second. 95% of the clips must be answered before the next one comes; a camera completes one clip with
        every frame.
    volume
        Whether the network convolves in time as well as in space.
    """
    file_runtime = named(runtime)
    data_splits = splits(volume=volume)
    torch.manual_seed(0)
    teacher = trained(Volume() if volume else Stacked(), data_splits.train, TEACHER_RECIPE)
    return StudySpec(
        name=f"moving-digits{'-volume' if volume else ''}{'' if runtime == 'onnx' else f'-{runtime}'}",
        teacher=teacher,
        splits=data_splits,
        space=Space(steps=(PruneRatios(), Ranks(), BitWidths(runtime=file_runtime)), recovery=Temperatures()),
        objectives=(Top1(data_splits.validation), SizeBytes(file_runtime)),
        limits=(fps(file_runtime, data_splits.validation.inputs[:TIMED_CLIPS], at_least=rate),),
        recipe=Recipe(epochs=4, batch_size=64),
        budget=Budget(trials=trials),
        runtime=file_runtime,
    )


def splits(*, volume: bool = False) -> Splits[Examples]:
    """Return clips (B, frames, H, W), or (B, 1, frames, H, W) for `volume`, made of the splits of the digits study.

    Each training image gives four clips, each other image one, so every digit is in one split only. The start, the
    direction and the noise of each clip are drawn once, with a fixed seed.
    """
    images = digits.splits()
    generator = torch.Generator().manual_seed(0)
    parts = (images.train.inputs.repeat(CLIPS_PER_DIGIT, 1, 1, 1), images.validation.inputs, images.test.inputs)
    return Splits(*(_clips(part, generator, volume=volume) for part in parts))


def _clips(images: Tensor, generator: torch.Generator, *, volume: bool) -> Examples:
    count, _, side, _ = images.shape
    labels = torch.randint(len(DIRECTIONS), (count,), generator=generator)
    steps = torch.tensor(DIRECTIONS)[labels]
    path = FRAMES - 1  # pixels that a digit moves along an axis
    room = SIDE - side - path  # pixels: range of the starts from which a digit stays inside of the frame
    starts = torch.randint(0, room + 1, (count, 2), generator=generator) + (steps < 0) * path
    clips = torch.zeros(count, FRAMES, SIDE, SIDE)
    for frame in range(FRAMES):
        corner = starts + frame * steps
        rows = corner[:, :1, None] + torch.arange(side)[None, :, None]
        columns = corner[:, 1:, None] + torch.arange(side)[None, None, :]
        clips[torch.arange(count)[:, None, None], frame, rows, columns] = images[:, 0]
    clips += NOISE * torch.randn(clips.shape, generator=generator)
    return Examples(clips[:, None] if volume else clips, labels)
