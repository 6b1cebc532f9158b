"""Studies of spoken digits for small boards: Free Spoken Digit Dataset, depthwise-separable and recurrent networks.

slimfront run studies/speech_digits.py:study --set data=FOLDER_OF_THE_RECORDINGS
slimfront run studies/speech_digits.py:crnn --set data=FOLDER_OF_THE_RECORDINGS
slimfront run studies/speech_digits.py:board --set data=FOLDER_OF_THE_RECORDINGS
"""

from __future__ import annotations

import hashlib
import math
import os
import wave
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's usual name

from objectives import ArenaBytes, Examples, Latency, LatencyShare, Limit, Macs, SizeBytes, Top1
from objectives.runtimes import named
from search import Budget, Recipe, Splits, StudySpec, trained
from search.study.errors import UserError
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER_VARIABLE = "FSDD"  # environment variable with the folder of the .wav files
CACHE = Path("runs/features")
SAMPLE_RATE, CLIP_SECONDS = 8000, 1.0  # Hz, and the length to which a recording is cut or padded
LARGEST_SAMPLE = 32768  # absolute value in a 16-bit recording
WINDOW, HOP = 320, 160  # samples: 40 ms and 20 ms, which give 49 frames, as in MLPerf Tiny
MELS = 20  # bands
TEST_BELOW, VALIDATION_BELOW = 5, 10  # indices of a speaker's recordings: 0-4 are the test set of the data's authors
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


def splits(data: str = "") -> Splits[Examples]:
    """Return recordings 10-49 of every speaker and digit for training, 5-9 for validation, 0-4 for test.

    Inputs are log-mel features (B, 1, 49, 20), standardized with the mean and the deviation of the training set.

    Raises
    ------
    UserError
        If the folder holds no recordings.
    """
    inputs, labels, indices = _features(_folder(data))
    train = indices >= VALIDATION_BELOW
    validation = (indices >= TEST_BELOW) & ~train
    inputs = (inputs - inputs[train].mean()) / inputs[train].std()
    return Splits(*(Examples(inputs[part], labels[part]) for part in (train, validation, indices < TEST_BELOW)))


def _folder(data: str) -> Path:
    given = data or os.environ.get(FOLDER_VARIABLE, "")
    folder = Path(given) / "recordings" if (Path(given) / "recordings").is_dir() else Path(given)
    if not given or not any(folder.glob("*_*_*.wav")):
        raise UserError(
            f"no recordings such as 0_george_0.wav in {given or 'the current folder'}; clone the Free Spoken Digit "
            f"Dataset and give its folder with --set data=FOLDER or the environment variable {FOLDER_VARIABLE}"
        )
    return folder


def _features(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-mel features (N, 1, T, M), digits (N,) and indices of recordings (N,); all are cached on disk."""
    paths = sorted(folder.glob("*_*_*.wav"))
    stamp = (
        "".join(f"{path.name}{path.stat().st_size}" for path in paths)
        + f"{SAMPLE_RATE}{CLIP_SECONDS}{WINDOW}{HOP}{MELS}"
    )
    cached = CACHE / f"fsdd-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}.safetensors"
    if not cached.exists():
        signals = torch.stack([_signal(path) for path in paths])
        names = [path.stem.split("_") for path in paths]
        cached.parent.mkdir(parents=True, exist_ok=True)
        features = {
            "inputs": log_mel(signals)[:, None].contiguous(),
            "labels": torch.tensor([int(digit) for digit, _, _ in names]),
            "indices": torch.tensor([int(index) for _, _, index in names]),
        }
        unfinished = cached.with_suffix(f".{os.getpid()}")
        save_file(features, unfinished)
        unfinished.replace(cached)
    features = load_file(cached)
    return features["inputs"], features["labels"], features["indices"]


def _signal(path: Path) -> Tensor:
    """Return one second of a mono 16-bit recording in [-1, 1], cut or padded by the same length at both ends."""
    with wave.open(str(path)) as file:
        if file.getframerate() != SAMPLE_RATE or file.getnchannels() != 1 or file.getsampwidth() != 2:  # noqa: PLR2004
            raise UserError(f"recordings must be mono, 16 bit and {SAMPLE_RATE} Hz, but {path} is not; convert it")
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    signal = torch.from_numpy(samples.astype(np.float32)) / LARGEST_SAMPLE
    missing = int(SAMPLE_RATE * CLIP_SECONDS) - len(signal)
    if missing >= 0:
        return F.pad(signal, (missing // 2, missing - missing // 2))
    return signal[-missing // 2 : -missing // 2 + int(SAMPLE_RATE * CLIP_SECONDS)]


def log_mel(signals: Tensor) -> Tensor:
    """Return log-mel energies (N, frames, mels) of signals (N, samples)."""
    spectrum = torch.stft(
        signals, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True
    ).abs()
    return torch.log(torch.einsum("nft,fm->ntm", spectrum.square(), mel_filters()) + 1e-6)


def mel_filters() -> Tensor:
    """Return triangular filters (frequencies, mels), evenly spaced on the mel scale from 20 Hz to half of the rate."""
    edges = torch.linspace(_mel(20.0), _mel(SAMPLE_RATE / 2), MELS + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequencies - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    falling = (hertz[2:] - frequencies) / (hertz[2:] - hertz[1:-1])
    return torch.minimum(rising, falling).clamp_min(0)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
