"""Digits pasted into pictures: class maps with void pixels, boxes, and numbers beside a picture.

    slimfront run studies/scenes.py:maps --cpu-seconds 300     LR-ASPP of torchvision, outputs in a dict, void pixels
    slimfront run studies/scenes.py:boxes --cpu-seconds 300    SSDLite of torchvision, any number of boxes
    slimfront run studies/scenes.py:sums --cpu-seconds 300     two inputs, a picture of a digit and a number to add

Maps and boxes need `pip install slimfront[tasks]`. Teachers are trained once, in about one CPU minute of the
first run.

Legend: `A` anchors, `4` left, top, right and bottom of a box in pixels.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation import LRASPP
from torchvision.ops import batched_nms, box_iou

from objectives import Examples, Score
from objectives.trees import PerExample
from search import Recipe, trained
from spaces import Imitations
from studies.pasted_digits import (
    DIGIT,
    HIGH,
    LOW,
    PICTURES,
    SIZE,
    Levels,
    Pasted,
    percent,
    scenes,
    seeded,
    standard,
    study_of,
)

if TYPE_CHECKING:
    from search import StudySpec

BACKGROUND, VOID, CLASSES = 0, 255, 11  # labels of class maps; classes with the background
LEAST_INK = 0.3  # of a pixel that belongs to the digit; weaker ones at its edge belong to no class
LEAST_SCORE, MOST_OVERLAP = 0.05, 0.5  # of boxes that are kept, and of two boxes of a class (usual values)
MOST_BOXES = 100  # of a picture, the surest ones: as many as pycocotools counts
DIGITS = LARGEST_NUMBER = 10  # classes of digits; the numbers to add are smaller
TEACHER_RECIPE = Recipe(epochs=10, batch_size=32, learning_rate=3e-3)


def maps(runtime: str = "onnx", pictures: int = PICTURES) -> StudySpec:
    """Search for class maps: mean intersection over union of the classes, against bytes.

    Parameters
    ----------
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    pictures
        Number of training pictures.
    """
    splits = scenes(class_maps, pictures)
    teacher = trained(
        seeded(lambda: LRASPP(Levels(), LOW, HIGH, CLASSES)), splits.train, TEACHER_RECIPE, loss=loss_of_maps
    )
    overlap = standard("JaccardIndex", task="multiclass", num_classes=CLASSES, ignore_index=VOID)
    score = Score(splits.validation, "miou_percent", overlap, convert=map_and_labels, read=percent)
    return study_of("scenes-maps", teacher, splits, score, Imitations(loss=loss_of_maps), runtime)


def boxes(runtime: str = "onnx", pictures: int = PICTURES) -> StudySpec:
    """Search for detectors: mean average precision of boxes with at least half overlap, against bytes.

    Parameters
    ----------
    runtime, pictures
        See `maps`.
    """
    splits, criterion = scenes(box_labels, pictures), Boxes(detector())
    teacher = trained(seeded(lambda: Heads(detector())), splits.train, TEACHER_RECIPE, loss=criterion.loss)
    precision = standard("detection.MeanAveragePrecision", iou_thresholds=[0.5])
    score = Score(splits.validation, "map50_percent", precision, convert=criterion.chosen, read=map50)
    return study_of("scenes-boxes", teacher, splits, score, Imitations(loss=criterion.loss), runtime)


def sums(runtime: str = "onnx", pictures: int = PICTURES) -> StudySpec:
    """Search for a regression with two inputs and two outputs: the sum of a digit and a number, against bytes.

    Parameters
    ----------
    runtime, pictures
        See `maps`.
    """
    splits = scenes(numbers_and_sums, pictures, most=1)
    teacher = trained(seeded(Described), splits.train, TEACHER_RECIPE, loss=loss_of_sums)
    score = Score(splits.validation, "error_digits", error_of_sums, "minimize")
    return study_of("scenes-sums", teacher, splits, score, Imitations(loss=loss_of_sums), runtime)


def class_maps(made: Pasted) -> Tensor:
    """Return the class of each pixel, shape (N, H, W): 0 for the background, a digit plus one, or void."""
    found = torch.full((len(made.pictures), SIZE, SIZE), BACKGROUND)
    for column in range(made.there.shape[1]):
        pixels = made.pixels(column)
        pictures = pixels[0][:, 0, 0]
        ink, classes = made.ink[pictures, column], made.digits[pictures, column] + 1
        edge = torch.where(ink > 0, VOID, BACKGROUND)
        found[pixels] = torch.where(ink > LEAST_INK, classes[:, None, None], edge)
    return found


def loss_of_maps(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Return the cross-entropy of class maps without void pixels."""
    return F.cross_entropy(outputs["out"], labels, ignore_index=VOID)


def map_and_labels(outputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the metric of class maps takes."""
    return outputs["out"], labels


def box_labels(made: Pasted) -> PerExample:
    """Return for each picture the boxes of its digits, and their classes, which start at 1 as torchvision's do."""
    first = made.corners.flip(2)
    places = torch.cat([first, first + DIGIT], 2).float()
    return PerExample(
        {"boxes": places[at][there], "labels": made.digits[at][there] + 1} for at, there in enumerate(made.there)
    )


def detector() -> SSD:
    """Return torchvision's SSD with the heads of SSDLite, and anchors about as large as a digit."""
    anchors = DefaultBoxGenerator([[], []], scales=[DIGIT / SIZE, 1.25 * DIGIT / SIZE, 1.5 * DIGIT / SIZE])
    head = SSDLiteHead([LOW, HIGH], anchors.num_anchors_per_location(), CLASSES, partial(nn.BatchNorm2d))
    return SSD(Levels(), anchors, (SIZE, SIZE), CLASSES, head=head)


class Heads(nn.Module):
    """The part of a detector that is compressed: from images to the numbers of all anchors, before boxes are chosen."""

    def __init__(self, net: SSD) -> None:
        super().__init__()
        self.backbone, self.head = net.backbone, net.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `bbox_regression` (B, A, 4) and `cls_logits` (B, A, classes)."""
        found: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return found


class Boxes:
    """What a detector does with the numbers of its anchors: the loss, and the choice of boxes."""

    def __init__(self, net: SSD) -> None:
        self._net = net
        images = torch.zeros(1, 1, SIZE, SIZE)
        with torch.no_grad():
            levels = list(net.eval().backbone(images).values())
        (self.anchors,) = net.anchor_generator(ImageList(images, [(SIZE, SIZE)]), levels)

    def loss(self, outputs: dict[str, Tensor], labels: list[dict[str, Tensor]]) -> Tensor:
        """Return the loss of SSD (Liu et al. 2016, arXiv:1512.02325, section 2.2)."""
        anchors = self.anchors.to(outputs["cls_logits"].device)
        matched = [self._net.proposal_matcher(box_iou(one["boxes"], anchors)) for one in labels]
        losses = self._net.compute_loss(labels, outputs, [anchors] * len(labels), matched)
        return torch.stack(list(losses.values())).sum()

    def chosen(
        self, outputs: dict[str, Tensor], labels: list[dict[str, Tensor]]
    ) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        """Return what the metric takes: for each picture the boxes found, with scores and classes, and the labels."""
        found = []
        for numbers, logits in zip(outputs["bbox_regression"], outputs["cls_logits"], strict=True):
            scores, classes = logits.softmax(1)[:, 1:].max(1)
            sure = scores >= LEAST_SCORE
            places = self._net.box_coder.decode_single(numbers[sure], self.anchors[sure])
            kept = batched_nms(places, scores[sure], classes[sure], MOST_OVERLAP)[:MOST_BOXES]
            found.append({"boxes": places[kept], "scores": scores[sure][kept], "labels": classes[sure][kept] + 1})
        return found, labels


def map50(found: dict[str, Tensor]) -> float:
    """Return the mean average precision at half overlap in percent."""
    return percent(found["map_50"])


class Described(nn.Module):
    """A picture (B, 1, 64, 64) and numbers (B, 2), the one to add and the brightness, joined before the last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.digit = Levels(), nn.Linear(HIGH, DIGITS)
        self.join, self.sum = nn.Linear(DIGITS + 2, 64), nn.Linear(64, 1)

    def forward(self, picture: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Return `digit` (B, 10), the logits of the digit, and `sum` (B, 1), the digit and the number together."""
        digit = self.digit(self.levels(picture)["high"].amax((2, 3)))
        joined = self.join(torch.cat([digit.softmax(1), numbers], 1)).relu()
        return {"digit": digit, "sum": self.sum(joined)}


def numbers_and_sums(made: Pasted) -> Examples:
    """Return the pictures with numbers (N, 2), the one to add over ten and the brightness; labels as the outputs."""
    generator = torch.Generator().manual_seed(len(made.pictures))
    added = torch.randint(LARGEST_NUMBER, made.brightness.shape, generator=generator)
    numbers, digits = torch.stack([added / LARGEST_NUMBER, made.brightness], 1), made.digits[:, 0]
    return Examples((made.pictures, numbers), {"digit": digits, "sum": (added + digits)[:, None].float()})


def loss_of_sums(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Return the cross-entropy of the digits plus the error of the sums, which alone are learnt by heart."""
    return F.cross_entropy(outputs["digit"], labels["digit"]) + error_of_sums(outputs, labels)


def error_of_sums(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Return the mean absolute error of the sums."""
    return F.l1_loss(outputs["sum"], labels["sum"])
