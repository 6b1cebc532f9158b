"""Handwritten digits pasted into pictures: class maps with void pixels, boxes, and numbers beside a picture.

    slimfront run studies/scenes.py:maps --cpu-seconds 300     LR-ASPP of torchvision, outputs in a dict, void pixels
    slimfront run studies/scenes.py:boxes --cpu-seconds 300    SSDLite of torchvision, any number of boxes
    slimfront run studies/scenes.py:sums --cpu-seconds 300     two inputs: a picture of a digit, and a number to add

The digits are those of scikit-learn, each used in one split only. The teachers are trained once, in a few CPU minutes.

Legend: `A` anchors, `4` left, top, right and bottom of a box in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation import LRASPP
from torchvision.ops import batched_nms, box_iou

from objectives import Examples, Macs, Score, SizeBytes
from objectives.runtimes import named
from objectives.trees import PerExample
from search import Recipe, Splits, StudySpec, trained
from spaces import BitWidths, Imitations, PruneRatios, Ranks, Space

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE, DIGIT, MOST = 64, 16, 3  # pixels of a picture and of a digit, and digits in a picture
BACKGROUND, VOID, CLASSES = 0, 255, 11  # labels of class maps; classes with the background
SCENES = {"train": 1200, "validation": 300, "test": 300}  # pictures
LEAST_INK = 0.3  # of a pixel that belongs to the digit; weaker ones at its edge belong to no class
LEAST_SCORE, LEAST_OVERLAP = 0.3, 0.5  # of boxes that are counted (usual values)
LOW, HIGH = (24, 48)  # channels of the two levels of features, at an eighth and a sixteenth of the size
NORM_MOMENTUM = 0.1  # of the statistics of norms, torch's default
TEACHER_RECIPE = Recipe(epochs=25, batch_size=32, learning_rate=3e-3)


def maps(runtime: str = "onnx") -> StudySpec:
    """Search for class maps: mean intersection over union of the classes, against bytes."""
    splits = scenes("maps")
    net = _seeded(lambda: LRASPP(Levels(), LOW, HIGH, CLASSES))
    teacher = trained(net, splits.train, TEACHER_RECIPE, loss=loss_of_maps)
    return _study(
        "maps", teacher, splits, Score(splits.validation, "miou_percent", MeanOverlap()), loss_of_maps, runtime
    )


def boxes(runtime: str = "onnx") -> StudySpec:
    """Search for detectors: F1 of boxes with the right class and at least half overlap, against bytes."""
    splits, criterion = scenes("boxes"), Boxes(detector())
    teacher = trained(_seeded(lambda: Heads(detector())), splits.train, TEACHER_RECIPE, loss=criterion.loss)
    score = Score(splits.validation, "f1_percent", FoundBoxes(criterion))
    return _study("boxes", teacher, splits, score, criterion.loss, runtime)


def sums(runtime: str = "onnx") -> StudySpec:
    """Search for a regression with two inputs: the sum of a digit and a number, against bytes."""
    splits = scenes("sums")
    teacher = trained(_seeded(Described), splits.train, TEACHER_RECIPE, loss=F.smooth_l1_loss)
    score = Score(splits.validation, "error_digits", F.l1_loss, "minimize")
    return _study("sums", teacher, splits, score, F.smooth_l1_loss, runtime)


def _study(
    name: str,
    teacher: nn.Module,
    splits: Splits[Examples],
    score: Score,
    loss: Callable[[Any, Any], Tensor],
    runtime: str,
) -> StudySpec:
    file_runtime = named(runtime)
    return StudySpec(
        name=f"scenes-{name}" if runtime == "onnx" else f"scenes-{name}-{runtime}",
        teacher=teacher,
        splits=splits,
        space=Space(
            steps=(PruneRatios(round_to=file_runtime.channels), Ranks(), BitWidths(runtime=file_runtime)),
            recovery=Imitations(loss=loss),
        ),
        objectives=(score, SizeBytes(file_runtime)),
        reported=(Macs(splits.validation.example()),),
        recipe=Recipe(epochs=5, batch_size=32),
        runtime=file_runtime,
    )


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


class Levels(nn.Module):
    """MobileNetV3-small up to a sixteenth of the size; returns features at an eighth (`low`) and there (`high`)."""

    def __init__(self) -> None:
        super().__init__()
        features = list(mobilenet_v3_small(weights=None).features)
        self.first, self.second = nn.Sequential(*features[:4]), nn.Sequential(*features[4:9])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features by level, each (B, C, h, w)."""
        low = self.first(images)
        return {"low": low, "high": self.second(low)}


def detector() -> SSD:
    """Return torchvision's SSD with the heads of SSDLite, and anchors as large as a digit."""
    anchors = DefaultBoxGenerator([[1], [1]], scales=[DIGIT / SIZE, 1.5 * DIGIT / SIZE, 2 * DIGIT / SIZE])
    per_place = anchors.num_anchors_per_location()
    head = SSDLiteHead([LOW, HIGH], per_place, CLASSES, nn.BatchNorm2d)
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
        images = torch.zeros(1, 3, SIZE, SIZE)
        with torch.no_grad():
            levels = list(net.eval().backbone(images).values())
        (self.anchors,) = net.anchor_generator(ImageList(images, [(SIZE, SIZE)]), levels)

    def loss(self, outputs: dict[str, Tensor], labels: list[dict[str, Tensor]]) -> Tensor:
        """Return the loss of SSD (Liu et al. 2016, arXiv:1512.02325, section 2.2)."""
        anchors = self.anchors.to(outputs["cls_logits"].device)
        matched = [self._net.proposal_matcher(box_iou(one["boxes"], anchors)) for one in labels]
        losses = self._net.compute_loss(labels, outputs, [anchors] * len(labels), matched)
        return torch.stack(list(losses.values())).sum()

    def chosen(self, outputs: dict[str, Tensor], at: int) -> tuple[Tensor, Tensor]:
        """Return the boxes (N, 4) of one picture and their classes (N,), the surest first."""
        scores, classes = outputs["cls_logits"][at].softmax(1)[:, 1:].max(1)
        sure = scores >= LEAST_SCORE
        places = self._net.box_coder.decode_single(outputs["bbox_regression"][at], self.anchors)[sure]
        kept = batched_nms(places, scores[sure], classes[sure], LEAST_OVERLAP)
        return places[kept], classes[sure][kept] + 1


class FoundBoxes:
    """Accumulates F1: of the boxes found and of those there, the share that belong together, in percent."""

    def __init__(self, criterion: Boxes) -> None:
        self._criterion = criterion
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._right = self._found = self._there = 0

    def update(self, outputs: dict[str, Tensor], labels: list[dict[str, Tensor]]) -> None:
        """Add a batch; each box there is found by at most one, the surest that overlaps enough and has its class."""
        for at, one in enumerate(labels):
            found, classes = self._criterion.chosen(outputs, at)
            fits = (box_iou(found, one["boxes"]) >= LEAST_OVERLAP) & (classes[:, None] == one["labels"])
            for row in range(len(found)):
                if fits[row].any():
                    self._right += 1
                    fits[:, int(fits[row].int().argmax())] = False
            self._found += len(found)
            self._there += len(one["labels"])

    def compute(self) -> float:
        """Return F1 in percent."""
        return 100 * 2 * self._right / max(1, self._found + self._there)


class MeanOverlap:
    """Accumulates the mean intersection over union of the classes in percent; void pixels do not count."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)

    def update(self, outputs: dict[str, Tensor], labels: Tensor) -> None:
        """Add a batch of class maps (B, H, W)."""
        counted = labels != VOID
        pairs = labels[counted] * CLASSES + outputs["out"].argmax(1)[counted]
        self._counts += pairs.bincount(minlength=CLASSES**2).reshape(CLASSES, CLASSES)

    def compute(self) -> float:
        """Return the mean over the classes that occur."""
        both = self._counts.diag().double()
        either = self._counts.sum(0) + self._counts.sum(1) - both
        return 100 * float((both / either)[either > 0].mean())


def loss_of_maps(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Return the cross-entropy of class maps without void pixels."""
    return F.cross_entropy(outputs["out"], labels, ignore_index=VOID)


class Described(nn.Module):
    """A picture (B, 3, 64, 64) and numbers (B, 2), the one to add and the brightness, joined before the last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.numbers = Levels(), nn.Linear(2, 32)
        for module in self.levels.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = NORM_MOMENTUM  # torchvision's suits much longer trainings
        self.join, self.head = nn.Linear(HIGH + 32, 64), nn.Linear(64, 1)

    def forward(self, picture: Tensor, numbers: Tensor) -> Tensor:
        """Return the sum of the digit and the number (B, 1)."""
        seen = torch.cat([self.levels(picture)["high"].amax((2, 3)), self.numbers(numbers).relu()], 1)
        found: Tensor = self.head(self.join(seen).relu())
        return found


def scenes(kind: str) -> Splits[Examples]:
    """Return pictures with the labels of a task: `maps`, `boxes` or `sums`."""
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    digits, labels = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(classes)[order]
    bounds = [0, 1000, 1400, len(digits)]
    return Splits(
        *(
            _pasted(kind, digits[low:high], labels[low:high], count, seed)
            for seed, (count, low, high) in enumerate(zip(SCENES.values(), bounds[:-1], bounds[1:], strict=True))
        )
    )


def _pasted(kind: str, digits: Tensor, labels: Tensor, count: int, seed: int) -> Examples:
    """Paste one to three digits into each picture, for sums one, at places that do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    large = F.interpolate(digits.reshape(-1, 1, 8, 8), (DIGIT, DIGIT), mode="bilinear")[:, 0]
    pictures = 0.3 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
    class_maps = torch.full((count, SIZE, SIZE), BACKGROUND)
    found, numbers, sums_of = PerExample(), torch.zeros(count, 2), torch.zeros(count, 1)
    for at in range(count):
        places, classes = [], []
        many = 1 if kind == "sums" else int(torch.randint(1, MOST + 1, (), generator=generator))
        number = int(torch.randint(10, (), generator=generator))
        cells = torch.randperm(9, generator=generator)[:many]  # of 3x3 cells, each larger than a digit
        brightness = 0.5 + 0.5 * float(torch.rand((), generator=generator))
        for cell in cells.tolist():
            which = int(torch.randint(len(digits), (), generator=generator))
            free = SIZE // 3 - DIGIT
            move = torch.randint(0, free + 1, (2,), generator=generator)
            top, left = (SIZE // 3 * (cell // 3) + int(move[0]), SIZE // 3 * (cell % 3) + int(move[1]))
            area = (slice(top, top + DIGIT), slice(left, left + DIGIT))
            pictures[at][:, area[0], area[1]] += brightness * large[which]
            ink = large[which]
            class_maps[at][area] = torch.where(ink > LEAST_INK, int(labels[which]) + 1, torch.where(ink > 0, VOID, 0))
            places.append([left, top, left + DIGIT, top + DIGIT])
            classes.append(int(labels[which]) + 1)
        found.append({"boxes": torch.tensor(places, dtype=torch.float32), "labels": torch.tensor(classes)})
        numbers[at] = torch.tensor([number / 10, brightness])
        sums_of[at] = classes[0] - 1 + number
    inputs: Any = (pictures, numbers) if kind == "sums" else pictures
    return Examples(inputs, {"maps": class_maps, "boxes": found, "sums": sums_of}[kind])
