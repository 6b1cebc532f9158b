"""Studies of spoken digits for small boards: Free Spoken Digit Dataset, depthwise-separable and recurrent networks.

slimfront run studies/speech_digits.py:study --set data=FOLDER_OF_THE_RECORDINGS
slimfront run studies/speech_digits.py:crnn --set data=FOLDER_OF_THE_RECORDINGS
slimfront run studies/speech_digits.py:board --set data=FOLDER_OF_THE_RECORDINGS
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from objectives import ArenaBytes, Latency, LatencyShare, Limit, Macs, SizeBytes, Top1
from objectives.runtimes import named
from search import Budget, Recipe, StudySpec, trained
from search.study.errors import UserError
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures
from studies.recordings import MELS, preprocessing, splits

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_SHIFT = 5  # frames, in the augmentation
WIDEST_MASKS = 8, 4  # frames and bands, in the augmentation


class DsCnn(nn.Module):
    """A 10x4 convolution and four depthwise-separable blocks (Zhang et al. 2017, arXiv:1711.07128, §4; MLPerf Tiny)."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(_separable(width) for _ in range(4)))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, 10) of log-mel features (B, 1, frames, mels)."""
        return self.head(self.drop(self.blocks(self.stem(features)).mean((2, 3))))  # type: ignore[no-any-return]


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class Crnn(nn.Module):
    """Two convolutions and a gated recurrent layer in both directions (Arik et al. 2017, arXiv:1703.05390, §3)."""

    def __init__(self, width: int = 32, units: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, (1, 2), 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.steps = nn.GRU(width * -(-MELS // 4), units, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * units, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, 10) of log-mel features (B, 1, frames, mels)."""
        steps, _ = self.steps(self.front(features).transpose(1, 2).flatten(2))
        return self.head(self.drop(steps.mean(1)))  # type: ignore[no-any-return]


def shift_and_mask(features: Tensor, generator: Generator) -> Tensor:
    """Return features (B, 1, T, M), shifted by up to 5 frames, with a stripe of frames and one of bands set to zero.

    References
    ----------
    Park et al. 2019, SpecAugment, arXiv:1904.08779, §2.
    """
    count, _, frames, mels = features.shape
    moved = torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, (count, 1), generator=generator) + torch.arange(frames)
    features = features[torch.arange(count)[:, None], :, moved.clamp(0, frames - 1)].transpose(1, 2)
    for size, widest, shape in zip((frames, mels), WIDEST_MASKS, ((frames, 1), (1, mels)), strict=True):
        start = torch.randint(0, size, (count, 1), generator=generator)
        width = torch.randint(0, widest + 1, (count, 1), generator=generator)
        place = torch.arange(size)
        masked = (place >= start) & (place < start + width)
        features = features.masked_fill(masked.reshape(count, 1, *shape), 0.0)
    return features


def study(data: str = "", trials: int = 30, runtime: str = "onnx") -> StudySpec:
    """Search for high top-1, a small file and few multiply-adds.

    Parameters
    ----------
    data
        Folder of the recordings; by default the folder in the environment variable FSDD.
    trials
        Number of candidates to train.
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    """
    return _study("speech-digits", DsCnn, data, trials, runtime)


def crnn(data: str = "", trials: int = 20, runtime: str = "onnx") -> StudySpec:
    """Search as `study` does, for a network with a recurrent layer.

    Parameters
    ----------
    data, trials, runtime
        See `study`.
    """
    return _study("speech-crnn", Crnn, data, trials, runtime)


def _study(name: str, network: Callable[[], nn.Module], data: str, trials: int, runtime: str) -> StudySpec:
    file_runtime = named(runtime)
    data_splits = splits(data)
    torch.manual_seed(0)
    recipe = Recipe(epochs=40, batch_size=64, learning_rate=4e-3, weight_decay=0.02, augment=shift_and_mask)
    teacher = trained(network(), data_splits.train, recipe, smoothing=0.05)
    return StudySpec(
        name=name if runtime == "onnx" else f"{name}-{runtime}",
        teacher=teacher,
        splits=data_splits,
        space=Space(
            steps=(PruneRatios(), Ranks(), BitWidths(runtime=file_runtime)),
            recovery=Temperatures(),
        ),
        objectives=(Top1(data_splits.validation), SizeBytes(file_runtime), Macs(data_splits.validation.inputs)),
        recipe=Recipe(epochs=4, batch_size=64),
        confirmation=Recipe(epochs=12, batch_size=64),
        budget=Budget(trials=trials),
        runtime=file_runtime,
        preprocessing=preprocessing(data),
    )


BOARD_STUDIES = {"ds-cnn": study, "crnn": crnn}


def board(data: str = "", trials: int = 20, network: str = "ds-cnn") -> StudySpec:
    """Search for little flash and RAM on a microcontroller, with at most 1 point of top-1 lost.

    Parameters
    ----------
    data, trials
        See `study`.
    network
        ds-cnn or crnn.
    """
    if network not in BOARD_STUDIES:
        raise UserError(f"network must be {' or '.join(BOARD_STUDIES)}, but got {network!r}")
    spec = BOARD_STUDIES[network](data, trials, "tflite-micro")
    accuracy, size, _ = spec.objectives
    arena = ArenaBytes(spec.example())
    return replace(
        spec,
        name=f"speech-board-{network}",
        objectives=(accuracy, size, arena),
        limits=(Limit(accuracy, lose_at_most=1.0),),
        confirmation=Recipe(epochs=40, batch_size=64),
    )


def deployed(
    data: str = "",
    trials: int = 40,
    runtime: str = "onnx",
    share: float = 0.5,
    highest: float = 0.75,
    least: float = 90.0,
) -> StudySpec:
    """Search for small files with at most half of the teacher's latency on a runtime.

    Parameters
    ----------
    data, trials, runtime
        See `study`.
    share
        The limit on latency, as a share of the teacher's; batch 1, one thread.
    highest
        The largest pruning ratio.
    least
        The limit on top-1, in percent, after the training of the search, which is a fifteenth of the confirmation's.
    """
    spec = study(data, trials, runtime)
    latency = LatencyShare(Latency(spec.runtime, spec.teacher, spec.splits.validation.inputs[:1]))
    return replace(
        spec,
        name=f"speech-deployed-{runtime}",
        space=Space(
            steps=(
                PruneRatios(highest, round_to=spec.runtime.channels),
                Depth(),
                Ranks(),
                BitWidths(runtime=spec.runtime),
            ),
            recovery=Temperatures(),
        ),
        objectives=spec.objectives[:2],
        limits=(Limit(latency, at_most=share), Limit(spec.objectives[0], at_least=least)),
        confirmation=Recipe(epochs=60, batch_size=64),
    )
