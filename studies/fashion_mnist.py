"""Studies of Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) with three teachers.

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
from torch.nn import functional as F  # noqa: N812 - torch's usual name

from objectives import Bops, Examples, Latency, LatencyShare, Limit, Loss, Macs, Parameters, SizeBytes, Top1, TopK
from objectives.runtimes import OnnxRuntime, named
from search import Budget, Recipe, Splits, StudySpec, trained
from search.study.errors import UserError
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures

FOLDER_VARIABLE = "FASHION_MNIST"  # environment variable with the folder of the four IDX files
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the folder of Debian's package dataset-fashion-mnist
DOWNLOADED = Path("runs/data")
VALIDATION = 6000  # images: the last of the 60,000 training images
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pixels in [0, 1], computed from the data set
MOST_SHIFT = 2  # pixels, in each direction


class Introductory(nn.Module):
    """The network of introductory texts: 5x5 convolutions with 10 and 20 channels, then linear layers 320-50-10."""

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
    """Two 3x3 convolutions and a shortcut; the shortcut is a 1x1 convolution if the shape changes."""

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

    With a stem of stride 1 it has 10 M multiply-adds and is ResNet-8, the reference network of MLPerf Tiny for images
    (Banbury et al. 2021, arXiv:2106.07597).
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
    """Return the images (B, C, H, W), half of them mirrored, each shifted by up to two pixels in each direction."""
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < 0.5  # noqa: PLR2004
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    down, right = torch.randint(0, 2 * MOST_SHIFT + 1, (2, count, 1), generator=generator)
    padded = F.pad(images, (MOST_SHIFT,) * 4, value=-MEAN / DEVIATION)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], 0, rows, columns]


def introductory(data: str = "", trials: int = 40) -> StudySpec:
    """Search on the network of two convolutions for high top-1, a small file and few multiply-adds.

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Number of candidates to train.
    """
    data_splits = splits(data)
    torch.manual_seed(0)
    teacher = trained(Introductory(), data_splits.train, Recipe(epochs=15, batch_size=128, learning_rate=2e-3))
    return StudySpec(
        name="fashion-introductory",
        teacher=teacher,
        splits=data_splits,
        space=_space(round_to=1),
        objectives=(Top1(data_splits.validation), SizeBytes(), Macs(data_splits.validation.inputs)),
        reported=(TopK(data_splits.validation, 2), Loss(data_splits.validation), Parameters()),
        recipe=Recipe(epochs=2, batch_size=128),
        confirmation=Recipe(epochs=4, batch_size=128),
        budget=Budget(trials=trials),
    )


def residual(data: str = "", trials: int = 40) -> StudySpec:
    """Search on the residual network for high top-1 and few bit operations.

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Number of candidates to train.
    """
    data_splits = splits(data)
    return StudySpec(
        name="fashion-residual",
        teacher=_residual_teacher(data_splits, stride=2, epochs=20),
        splits=data_splits,
        space=_space(round_to=8),  # the kernels of ONNX Runtime compute blocks of 8 channels
        objectives=(Top1(data_splits.validation), Bops(data_splits.validation.inputs)),
        reported=(Macs(data_splits.validation.inputs), SizeBytes()),
        recipe=Recipe(epochs=1, batch_size=128),
        confirmation=Recipe(epochs=2, batch_size=128),
        budget=Budget(trials=trials),
    )


def quick(data: str = "", trials: int = 20) -> StudySpec:
    """Search on the residual network for low latency in ONNX Runtime on this machine, batch 1, one thread.

    This is `residual` with pruning as the only axis: in this network, narrow bit widths and factorized layers reduce
    the size of the file but not its latency (studies/LOG.md).

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Number of candidates to train.
    """
    spec = residual(data, trials)
    example = spec.splits.validation.inputs[:1]
    latency = Latency(OnnxRuntime(), spec.teacher, example)
    space = Space(steps=(PruneRatios(highest=0.75, step=0.25, round_to=8),), recovery=Temperatures())
    return replace(spec, name="fashion-quick", space=space, objectives=(spec.objectives[0], latency))


def deployed(
    data: str = "", trials: int = 40, runtime: str = "onnx", share: float = 0.5, highest: float = 0.75
) -> StudySpec:
    """Search on ResNet-8 for small files with at most half of the teacher's latency on a runtime.

    Parameters
    ----------
    data
        Folder of the four IDX files, gzipped or not.
    trials
        Number of candidates to train.
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    share
        The limit on latency, as a share of the teacher's; batch 1, one thread.
    highest
        The largest pruning ratio.
    """
    file_runtime = named(runtime)
    data_splits = splits(data)
    teacher = _residual_teacher(data_splits, stride=1, epochs=10)
    latency = LatencyShare(Latency(file_runtime, teacher, data_splits.validation.inputs[:1]))
    return StudySpec(
        name=f"fashion-deployed-{runtime}",
        teacher=teacher,
        splits=data_splits,
        space=Space(
            steps=(
                PruneRatios(highest, round_to=file_runtime.channels),
                Depth(),
                Ranks(),
                BitWidths(runtime=file_runtime),
            ),
            recovery=Temperatures(),
        ),
        objectives=(Top1(data_splits.validation), SizeBytes(file_runtime)),
        limits=(Limit(latency, at_most=share),),
        reported=(Macs(data_splits.validation.inputs),),
        recipe=Recipe(epochs=1, batch_size=128),
        confirmation=Recipe(epochs=15, batch_size=128),
        budget=Budget(trials=trials),
        runtime=file_runtime,
    )


def splits(data: str = "") -> Splits[Examples]:
    """Return 54,000 training, 6,000 validation and 10,000 test images (B, 1, 28, 28), standardized.

    Parameters
    ----------
    data
        Folder of the four IDX files. By default: the folder in the environment variable FASHION_MNIST, the folder of
        Debian's package, or runs/data, to which torchvision downloads the files.

    Raises
    ------
    UserError
        If the files are in none of these folders and cannot be downloaded; the message lists the folders.
    """
    folder = _folder(data)
    images, labels = _idx(folder / "train-images-idx3-ubyte"), _idx(folder / "train-labels-idx1-ubyte")
    test, test_labels = _idx(folder / "t10k-images-idx3-ubyte"), _idx(folder / "t10k-labels-idx1-ubyte")
    return Splits(
        _examples(images[:-VALIDATION], labels[:-VALIDATION]),
        _examples(images[-VALIDATION:], labels[-VALIDATION:]),
        _examples(test, test_labels),
    )


def _residual_teacher(data_splits: Splits[Examples], stride: int, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    recipe = Recipe(epochs=epochs, batch_size=128, learning_rate=4e-3, weight_decay=0.05, augment=flip_and_shift)
    return trained(Residual(stride), data_splits.train, recipe, smoothing=0.05)


def _space(round_to: int) -> Space:
    """Return the space of `introductory` and `residual`, with the bit widths that ONNX files pack and compute with."""
    return Space(
        steps=(PruneRatios(round_to=round_to), Ranks(), BitWidths(weights=(2, 4, 8), activations=(8,))),
        recovery=Temperatures(),
    )


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    pixels = torch.from_numpy(images.astype(np.float32))[:, None] / 255
    return Examples((pixels - MEAN) / DEVIATION, torch.from_numpy(labels.astype(np.int64)))


def _folder(data: str) -> Path:
    given = data or os.environ.get(FOLDER_VARIABLE, "")
    if given:
        if not _has_images(Path(given)):
            raise UserError(f"no train-images-idx3-ubyte(.gz) in {given}; name the folder of the four IDX files")
        return Path(given)
    if _has_images(DEBIAN):
        return DEBIAN
    raw = DOWNLOADED / "FashionMNIST" / "raw"
    if not _has_images(raw):
        _download()
    return raw


def _has_images(folder: Path) -> bool:
    return any((folder / f"train-images-idx3-ubyte{ending}").exists() for ending in ("", ".gz"))


def _download() -> None:
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415 - only needed if no files are on the disk

    try:
        FashionMNIST(str(DOWNLOADED), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Fashion-MNIST is neither in {DEBIAN} (Debian's package dataset-fashion-mnist) nor in {DOWNLOADED}, and "
            f"could not be downloaded ({error}); give their folder with --set data=FOLDER or the environment "
            f"variable {FOLDER_VARIABLE}"
        ) from error


def _idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes.

    The file starts with a magic number, whose last byte is the number of dimensions; the sizes and the values follow.
    """
    packed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
