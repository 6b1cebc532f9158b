"""A study of small colour photographs in an image folder: half of MobileNetV3-small at 64x64 pixels.

slimfront run studies/photographs.py:mobilenet --set data=FOLDER --goal "4x smaller, 2x faster, lose at most 1 point"

The folder has the layout of torchvision's `ImageFolder`: `train/<class>/*.jpg` and `test/<class>/*.jpg`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Generator, Tensor
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v3_small
from torchvision.transforms import v2

from objectives import Examples, Latency, LatencyShare, Macs, SizeBytes, Top1
from objectives.runtimes import named
from search import Budget, Recipe, Splits, StudySpec, trained
from search.study.errors import UserError
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures

FOLDER_VARIABLE = "PHOTOGRAPHS"  # environment variable with the folder
PIXELS = 64  # to which the photographs are resized
VALIDATION_EVERY = 10  # every tenth photograph of the training folder, in the order of their names
MEAN, DEVIATION = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10's training pixels, in [0, 1]
MOST_SHIFT = 6  # pixels, in each direction


def splits(data: str = "") -> Splits[Examples]:
    """Return the photographs as images (B, 3, 64, 64), standardized.

    Parameters
    ----------
    data
        The folder; by default the one in the environment variable PHOTOGRAPHS.

    Raises
    ------
    UserError
        If the folder has no photographs.
    """
    folder = Path(data or os.environ.get(FOLDER_VARIABLE, ""))
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        raise UserError(
            f"there are no folders train/<class> and test/<class> in {folder}; name a folder of photographs with --set "
            f"data=FOLDER or the environment variable {FOLDER_VARIABLE}"
        )
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((PIXELS, PIXELS), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
    )
    train, test = (_examples(ImageFolder(str(folder / name), transform)) for name in ("train", "test"))
    held_out = torch.arange(len(train)) % VALIDATION_EVERY == 0
    return Splits(train.take(torch.where(~held_out)[0]), train.take(torch.where(held_out)[0]), test)


def _examples(images: ImageFolder) -> Examples:
    pairs = [images[index] for index in range(len(images))]
    return Examples(torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs]))


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Return images that are flipped at random and shifted by up to 6 pixels."""
    flipped = torch.rand(len(images), generator=generator) < 1 / 2
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    down, right = torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, (2,), generator=generator).tolist()
    return images.roll((down, right), (-2, -1))


def mobilenet(data: str = "", trials: int = 40, runtime: str = "onnx") -> StudySpec:
    """Search on half of MobileNetV3-small for high top-1, small files and low latency on a runtime.

    Parameters
    ----------
    data
        The folder of photographs.
    trials
        Number of candidates to train.
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    """
    file_runtime = named(runtime)
    data_splits = splits(data)
    torch.manual_seed(0)
    net = mobilenet_v3_small(width_mult=0.5, num_classes=10)
    recipe = Recipe(epochs=60, batch_size=128, learning_rate=4e-3, weight_decay=0.05, augment=augment)
    teacher = trained(net, data_splits.train, recipe, smoothing=0.1)
    latency = LatencyShare(Latency(file_runtime, teacher, data_splits.validation.inputs[:1]))
    return StudySpec(
        name=f"photographs-{runtime}",
        teacher=teacher,
        splits=data_splits,
        space=Space(
            (PruneRatios(round_to=file_runtime.channels), Depth(), Ranks(), BitWidths(runtime=file_runtime)),
            Temperatures(),
        ),
        objectives=(Top1(data_splits.validation), SizeBytes(file_runtime), latency),
        reported=(Macs(data_splits.validation.inputs),),
        recipe=Recipe(epochs=3, batch_size=128),
        confirmation=Recipe(epochs=15, batch_size=128, augment=augment),
        budget=Budget(trials=trials),
        runtime=file_runtime,
    )
