"""The recordings of the Free Spoken Digit Dataset, as samples and as log-mel features."""

from __future__ import annotations

import hashlib
import math
import os
import wave
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's usual name

from objectives import Examples, LogMel, Preprocessing
from objectives.preprocessing import SMALLEST_ENERGY
from search import Splits
from search.study.errors import UserError

FOLDER_VARIABLE = "FSDD"  # environment variable with the folder of the .wav files
CACHE = Path("runs/features")
SAMPLE_RATE, CLIP_SECONDS = 8000, 1.0  # Hz, and the length to which a recording is cut or padded
LARGEST_SAMPLE = 32768  # absolute value in a 16-bit recording
WINDOW, HOP = 320, 160  # samples: 40 ms and 20 ms, which give 49 frames, as in MLPerf Tiny
MELS = 20  # bands
TEST_BELOW, VALIDATION_BELOW = 5, 10  # indices of a speaker's recordings: 0-4 are the test set of the data's authors


def splits(data: str = "") -> Splits[Examples]:
    """Return recordings 10-49 of every speaker and digit for training, 5-9 for validation, 0-4 for test.

    Inputs are log-mel features (B, 1, 49, 20), standardized with the mean and the deviation of the training set.

    Raises
    ------
    UserError
        If the folder holds no recordings.
    """
    inputs, labels, indices = _features(_folder(data))
    train, validation = _parts(indices)
    inputs = (inputs - inputs[train].mean()) / inputs[train].std()
    return Splits(*(Examples(inputs[part], labels[part]) for part in (train, validation, indices < TEST_BELOW)))


def _parts(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return which recordings are for training and for validation."""
    train = indices >= VALIDATION_BELOW
    return train, (indices >= TEST_BELOW) & ~train


def preprocessing(data: str = "") -> Preprocessing:
    """Return what makes the inputs of the networks of samples (B, 8000) of 16 bits, as a microphone gives them.

    Raises
    ------
    UserError
        If the folder holds no recordings.
    """
    folder = _folder(data)
    inputs, labels, indices = _features(folder)
    train, validation = _parts(indices)
    mean, deviation = float(inputs[train].mean()), float(inputs[train].std())
    paths = [path for path, chosen in zip(_paths(folder), validation.tolist(), strict=True) if chosen]
    sounds = torch.stack([(_signal(path) * LARGEST_SAMPLE).to(torch.int16) for path in paths])
    module = LogMel(mel_filters(), WINDOW, HOP, LARGEST_SAMPLE, mean, deviation)
    return Preprocessing(module, Examples(sounds, labels[validation]))


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_*_*.wav"))


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
    paths = _paths(folder)
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
    return torch.log(torch.einsum("nft,fm->ntm", spectrum.square(), mel_filters()) + SMALLEST_ENERGY)


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
