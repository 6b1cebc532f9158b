"""Metrics of any task: functions, and objects that are updated batch by batch."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from objectives import Examples, Metric, Score
from studies.scenes import CLASSES, VOID, Boxes, FoundBoxes, Heads, MeanOverlap, detector, scenes

DATA = Examples(torch.arange(600.0)[:, None], torch.zeros(600, 1))


def test_a_function_is_averaged_over_the_examples_and_not_over_the_batches() -> None:
    score = Score(DATA, "mean", lambda outputs, _: outputs.mean(), "minimize")
    assert score(nn.Identity()) == pytest.approx(299.5)
    assert isinstance(score, Metric)
    assert score.on(Examples(torch.ones(3, 1), torch.zeros(3, 1)))(nn.Identity()) == 1
    assert score.direction == "minimize"


class Largest:
    """A metric as torchmetrics has them, that returns several values by name."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.largest = 0.0

    def update(self, values: Tensor) -> None:
        self.largest = max(self.largest, float(values.max()))

    def compute(self) -> dict[str, float]:
        return {"largest": self.largest}


def test_an_accumulating_metric_is_copied_and_starts_anew() -> None:
    metric = Largest()
    metric.update(torch.full((1,), 1e9))
    score = Score(
        DATA,
        "largest",
        metric,
        convert=lambda outputs, labels: (outputs + labels,),
        read=lambda found: found["largest"],
    )
    assert score(nn.Identity()) == score(nn.Identity()) == 599
    assert metric.largest == 1e9


@pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
def test_metrics_of_torchmetrics_are_taken() -> None:
    torchmetrics: Any = pytest.importorskip("torchmetrics")
    maps = scenes("maps").validation
    score = Score(
        maps, "jaccard", torchmetrics.JaccardIndex("multiclass", num_classes=CLASSES, ignore_index=VOID),
        convert=lambda outputs, labels: (outputs["out"], labels),
    )  # fmt: skip
    assert 0 <= score(Answered(maps.labels)) <= 1


class Answered(nn.Module):
    """Answers with the labels themselves, in the order in which they are asked for."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        self.labels, self.done = labels, 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        labels = self.labels[self.done : self.done + len(images)]
        self.done = (self.done + len(images)) % len(self.labels)
        return {"out": nn.functional.one_hot(labels.clamp(max=CLASSES - 1), CLASSES).movedim(-1, 1).float()}


def test_the_overlap_of_right_class_maps_is_whole_and_void_pixels_do_not_count() -> None:
    maps = scenes("maps").validation
    assert Score(maps, "miou_percent", MeanOverlap())(Answered(maps.labels)) == 100
    wrong = torch.where(maps.labels == VOID, 3, maps.labels)
    assert Score(maps, "miou_percent", MeanOverlap())(Answered(wrong)) == 100
    assert Score(maps, "miou_percent", MeanOverlap())(Answered((maps.labels + 1) % CLASSES)) < 1


def test_boxes_that_are_found_are_counted_once() -> None:
    criterion, data = Boxes(detector()), scenes("boxes").validation.head(20)
    coder, matcher = criterion._net.box_coder, criterion._net.proposal_matcher

    def perfect(labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        numbers, logits = [], []
        for one in labels:
            matched = matcher(_overlaps(one["boxes"], criterion.anchors))
            nearest = one["boxes"][matched.clamp(min=0)]
            numbers.append(coder.encode_single(nearest, criterion.anchors))
            classes = torch.where(matched >= 0, one["labels"][matched.clamp(min=0)], 0)
            logits.append(20.0 * nn.functional.one_hot(classes, CLASSES))
        return {"bbox_regression": torch.stack(numbers), "cls_logits": torch.stack(logits)}

    metric = FoundBoxes(criterion)
    metric.update(perfect(data.labels), data.labels)
    assert metric.compute() == 100
    assert float(criterion.loss(perfect(data.labels), data.labels)) < 0.01
    untrained = Heads(detector()).eval()
    with torch.no_grad():
        assert float(criterion.loss(untrained(data.inputs), data.labels)) > 1


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    low, high = torch.maximum(boxes[:, None, :2], anchors[:, :2]), torch.minimum(boxes[:, None, 2:], anchors[:, 2:])
    both = (high - low).clamp(min=0).prod(2)
    areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (boxes, anchors)]
    return both / (areas[0][:, None] + areas[1] - both)
