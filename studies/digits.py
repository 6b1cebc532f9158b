"""The demo study: scikit-learn's digits (1,797 images of 8x8, part of that package) and a small residual network.

slimfront run studies/digits.py:study
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's usual name

from objectives import Examples, Limit, Macs, SizeBytes, Top1
from objectives.runtimes import named
from search import Budget, Recipe, Splits, StudySpec, trained
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures

TEACHER_RECIPE = Recipe(epochs=30, batch_size=64, learning_rate=3e-3)
LARGEST_PIXEL = 16  # of the data set
MACS_SHARE = 0.4  # the limit on multiply-adds, as a share of the teacher's


class Net(nn.Module):
    """Three 3x3 convolutions, the last two in a residual block, and a linear head; about 1.2 M multiply-adds."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 10) of images (B, 1, 8, 8)."""
        images = F.relu(self.stem_norm(self.stem(images)))
        images = F.relu(self.first_norm(self.first(images)))
        images = F.relu(images + self.second_norm(self.second(images)))
        return self.head(F.max_pool2d(images, 2).flatten(1))  # type: ignore[no-any-return]


def splits(seed: int = 0) -> Splits[Examples]:
    """Return 60% training, 20% validation and 20% test images (B, 1, 8, 8) in [0, 1], stratified by digit."""
    images, labels = load_digits(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    train, validation, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=0.25, stratify=rest_labels, random_state=seed
    )
    return Splits(
        _examples(train, train_labels), _examples(validation, validation_labels), _examples(test, test_labels)
    )


def study(trials: int = 30, runtime: str = "onnx") -> StudySpec:
    """Search for high top-1 and a small file, with at most 40% of the teacher's multiply-adds.

    Parameters
    ----------
    trials
        Number of candidates to train.
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    """
    file_runtime = named(runtime)
    data = splits()
    torch.manual_seed(0)
    teacher = trained(Net(), data.train, TEACHER_RECIPE)
    macs = Macs(data.validation.inputs)
    return StudySpec(
        name="digits" if runtime == "onnx" else f"digits-{runtime}",
        teacher=teacher,
        splits=data,
        space=Space(
            steps=(PruneRatios(), Ranks(), BitWidths(runtime=file_runtime)),
            recovery=Temperatures(),
        ),
        objectives=(Top1(data.validation), SizeBytes(file_runtime)),
        limits=(Limit(macs, at_most=MACS_SHARE * macs(teacher)),),
        recipe=Recipe(epochs=10, batch_size=64),
        budget=Budget(trials=trials),
        runtime=file_runtime,
    )


def _examples(images: object, labels: object) -> Examples:
    pixels = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / LARGEST_PIXEL
    return Examples(pixels, torch.as_tensor(labels, dtype=torch.int64))
