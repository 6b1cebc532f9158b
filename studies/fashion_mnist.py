"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) with three teachers.

slimfront run studies/fashion_mnist.py:residual
slimfront run studies/fashion_mnist.py:introductory
slimfront run studies/fashion_mnist.py:deployed --set runtime=litert
"""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Bops, Examples, Latency, LatencyShare, Limit, Loss, Macs, Parameters, SizeBytes, Top1, TopK
from objectives.runtimes import OnnxRuntime, named
from search import Budget, Recipe, Splits, StudySpec, trained
from search.study.errors import UserError
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures

FOLDER = "FASHION_MNIST"  # the environment variable that names the folder of the four IDX files
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
DOWNLOADED = Path("runs/data")
VALIDATION = 6000  # the last of the 60,000 training images
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pixels in [0, 1]


class Introductory(nn.Module):
    """The network of the introductory texts: convolutions of 10 and 20 channels of 5x5, then 320-50-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.conv2 = nn.Conv2d(10, 20, 5)
        self.drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 10) of images (B, 1, 28, 28)."""
        images = F.relu(F.max_pool2d(self.conv1(images), 2))
        images = F.relu(F.max_pool2d(self.drop(self.conv2(images)), 2))
        features = F.dropout(F.relu(self.fc1(images.flatten(1))), training=self.training)
        return self.fc2(features)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, outputs, H / stride, W / stride)."""
        features = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(images)))))
        return F.relu(features + self.shortcut(images))


class Residual(nn.Module):
    """A stem and three blocks of 16, 32 and 64 channels: 78,000 parameters, about 2.5 M multiply-adds.

    With a stem of stride 1 there are 10 M, and it is ResNet-8, the reference network of MLPerf Tiny for images (Banbury
    et al. 2021, arXiv:2106.07597).
    """

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 10) of images (B, 1, 28, 28)."""
        features = self.blocks(F.relu(self.norm(self.stem(images))))
        return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]


def flip_and_shift(images: Tensor, generator: Generator) -> Tensor:
    """Return the images (B, C, H, W), half of them mirrored, each shifted by up to two pixels both ways."""
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < 0.5  # noqa: PLR2004
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    down, right = torch.randint(0, 5, (2, count, 1), generator=generator)
    padded = F.pad(images, (2, 2, 2, 2), value=-MEAN / DEVIATION)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], 0, rows, columns]


def introductory(data: str = "", trials: int = 40) -> StudySpec:
    """Search on the two-convolution network: top-1 against the size of the file.

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Trained candidates.
    """
    found = splits(data)
    torch.manual_seed(0)
    teacher = trained(Introductory(), found.train, Recipe(epochs=15, batch_size=128, learning_rate=2e-3))
    return StudySpec(
        name="fashion-introductory",
        teacher=teacher,
        splits=found,
        space=_space(round_to=1),
        objectives=(Top1(found.validation), SizeBytes(), Macs(found.validation.inputs)),
        reported=(TopK(found.validation, 2), Loss(found.validation), Parameters()),
        recipe=Recipe(epochs=2, batch_size=128),
        confirmation=Recipe(epochs=4, batch_size=128),
        budget=Budget(trials=trials),
    )


def residual(data: str = "", trials: int = 40) -> StudySpec:
    """Search on the residual network: top-1 against bit operations.

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Trained candidates.
    """
    found = splits(data)
    return StudySpec(
        name="fashion-residual",
        teacher=_residual_teacher(found, stride=2, epochs=20),
        splits=found,
        space=_space(round_to=8),  # what the kernels of ONNX Runtime want
        objectives=(Top1(found.validation), Bops(found.validation.inputs)),
        reported=(Macs(found.validation.inputs), SizeBytes()),
        recipe=Recipe(epochs=1, batch_size=128),
        confirmation=Recipe(epochs=2, batch_size=128),
        budget=Budget(trials=trials),
    )


def quick(data: str = "", trials: int = 20) -> StudySpec:
    """Search on the residual network for its time in ONNX Runtime on this machine, batch 1, one thread.

    A variant of `residual`: bits and split layers buy size here and not time (studies/LOG.md), so only widths vary.

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Trained candidates.
    """
    spec = residual(data, trials)
    one = spec.splits.validation.inputs[:1]
    latency = Latency(OnnxRuntime(), spec.teacher, one)
    space = Space(steps=(PruneRatios(highest=0.75, step=0.25, round_to=8),), recovery=Temperatures())
    return replace(spec, name="fashion-quick", space=space, objectives=(spec.objectives[0], latency))


def deployed(
    data: str = "", trials: int = 40, runtime: str = "onnx", share: float = 0.5, highest: float = 0.75
) -> StudySpec:
    """Search on ResNet-8 for small files that take at most half of the teacher's time on a runtime.

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Trained candidates.
    runtime
        What the files are for: onnx, litert or executorch.
    share
        Of the teacher's time, batch 1, one thread.
    highest
        Share of its channels that a layer may lose.
    """
    executing = named(runtime)
    found = splits(data)
    teacher = _residual_teacher(found, stride=1, epochs=10)
    latency = LatencyShare(Latency(executing, teacher, found.validation.inputs[:1]))
    return StudySpec(
        name=f"fashion-deployed-{runtime}",
        teacher=teacher,
        splits=found,
        space=Space(
            steps=(PruneRatios(highest, round_to=executing.channels), Depth(), Ranks(), BitWidths(runtime=executing)),
            recovery=Temperatures(),
        ),
        objectives=(Top1(found.validation), SizeBytes(executing)),
        limits=(Limit(latency, at_most=share),),
        reported=(Macs(found.validation.inputs),),
        recipe=Recipe(epochs=1, batch_size=128),
        confirmation=Recipe(epochs=15, batch_size=128),
        budget=Budget(trials=trials),
        runtime=executing,
    )


def splits(data: str = "") -> Splits:
    """Return 54,000 training, 6,000 validation and 10,000 test images (B, 1, 28, 28), standardized.

    Parameters
    ----------
    data
        Folder of the four IDX files; by default that of the environment variable FASHION_MNIST, of Debian's package,
        or what torchvision downloads to runs/data.

    Raises
    ------
    UserError
        If they are nowhere; every place is named.
    """
    folder = _folder(data)
    images, labels = _idx(folder / "train-images-idx3-ubyte"), _idx(folder / "train-labels-idx1-ubyte")
    test, test_labels = _idx(folder / "t10k-images-idx3-ubyte"), _idx(folder / "t10k-labels-idx1-ubyte")
    return Splits(
        _examples(images[:-VALIDATION], labels[:-VALIDATION]),
        _examples(images[-VALIDATION:], labels[-VALIDATION:]),
        _examples(test, test_labels),
    )


def _residual_teacher(found: Splits, stride: int, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    recipe = Recipe(epochs=epochs, batch_size=128, learning_rate=4e-3, weight_decay=0.05, augment=flip_and_shift)
    return trained(Residual(stride), found.train, recipe, smoothing=0.05)


def _space(round_to: int) -> Space:
    """Return the space of both studies: ONNX packs 2, 4 and 8 bits, and its runtime computes with 8-bit inputs."""
    return Space(
        steps=(PruneRatios(round_to=round_to), Ranks(), BitWidths(weights=(2, 4, 8), activations=(8,))),
        recovery=Temperatures(),
    )


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    pixels = torch.from_numpy(images.astype(np.float32))[:, None] / 255
    return Examples((pixels - MEAN) / DEVIATION, torch.from_numpy(labels.astype(np.int64)))


def _folder(data: str) -> Path:
    named = data or os.environ.get(FOLDER, "")
    if named:
        if not _holds(Path(named)):
            raise UserError(f"no train-images-idx3-ubyte(.gz) in {named}; name the folder of the four IDX files")
        return Path(named)
    if _holds(DEBIAN):
        return DEBIAN
    raw = DOWNLOADED / "FashionMNIST" / "raw"
    if not _holds(raw):
        _download()
    return raw


def _holds(folder: Path) -> bool:
    return any((folder / f"train-images-idx3-ubyte{ending}").exists() for ending in ("", ".gz"))


def _download() -> None:
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415 - only where nothing is on the disk

    try:
        FashionMNIST(str(DOWNLOADED), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Fashion-MNIST is neither in {DEBIAN} (Debian's package dataset-fashion-mnist) nor in {DOWNLOADED}, and "
            f"could not be downloaded ({error}); give a folder with --set data=FOLDER or the variable {FOLDER}"
        ) from error


def _idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: a magic number whose last byte is the number of dimensions, the sizes, the values."""
    packed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
