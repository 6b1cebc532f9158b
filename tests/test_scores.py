"""Metrics of any task: functions, and objects that are updated batch by batch."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from objectives import Examples, Metric, Score
from objectives.trees import at, length
from studies.pasted_digits import percent, scenes, standard
from studies.scenes import CLASSES, Boxes, Heads, box_labels, detector, map50, map_and_labels

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


def made(name: str, **settings: Any) -> Any:
    pytest.importorskip("torchmetrics")
    return standard(name, **settings)


class Answered(nn.Module):
    """Answers with given outputs, in the order in which they are asked for."""

    def __init__(self, answers: Any) -> None:
        super().__init__()
        self.answers, self.done = answers, 0

    def forward(self, inputs: Tensor) -> Any:
        start = self.done
        self.done = (start + len(inputs)) % (length(self.answers) or 1)
        return at(self.answers, slice(start, start + len(inputs)))


def test_mean_overlap_is_that_of_all_examples_and_void_pixels_do_not_count() -> None:
    labels = torch.randint(0, 3, (600, 4, 4), generator=torch.Generator().manual_seed(0))
    data = Examples(torch.zeros(600, 1), torch.where(labels == 2, 255, labels))
    score = Score(
        data, "miou_percent", made("JaccardIndex", task="multiclass", num_classes=2, ignore_index=255),
        convert=map_and_labels, read=percent,
    )  # fmt: skip
    maps = nn.functional.one_hot(labels.clamp(max=1), 2).movedim(-1, 1).float()
    assert score(Answered({"out": maps})) == score(Answered({"out": maps})) == 100
    maps[:150] = torch.tensor([1.0, 0.0])[:, None, None]  # the first quarter is all zeros
    counted = Score(
        Examples(torch.zeros(600, 1), labels.clamp(max=1)), "miou",
        made("segmentation.MeanIoU", num_classes=2, input_format="index"),
        convert=lambda outputs, labels: (outputs["out"].argmax(1), labels),
    )  # fmt: skip
    assert counted(Answered({"out": nn.functional.one_hot(labels.clamp(max=1), 2).movedim(-1, 1)})) == 1
    assert counted(Answered({"out": maps})) < 0.9
    zeros, ones = (labels == 0).sum().item(), (labels == 1).sum().item()
    missed = (labels[:150] == 1).sum().item()
    expected = 50 * (zeros / (zeros + missed) + (ones - missed) / ones)
    assert score(Answered({"out": maps})) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "settings", "worst"),
    [
        ("F1Score", {"task": "multilabel", "num_labels": 3, "average": "micro"}, 0.0),
        ("Recall", {"task": "multilabel", "num_labels": 3}, 0.0),
        ("R2Score", {}, -3.0),
        ("image.PeakSignalNoiseRatio", {"data_range": 1.0}, 0.0),
        ("image.StructuralSimilarityIndexMeasure", {"data_range": 1.0}, 0.1),
    ],
)
def test_metrics_of_torchmetrics_are_taken(name: str, settings: dict[str, Any], worst: float) -> None:
    shape = (600, 1, 12, 12) if name.startswith("image.") else (600, 1) if name == "R2Score" else (600, 3)
    labels = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    is_tag = "task" in settings

    def convert(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (outputs, targets.long()) if is_tag else (outputs, targets)

    score = Score(Examples(torch.zeros(600, 1), labels), "metric", made(name, **settings), convert=convert)
    best = score(Answered(labels.clone()))
    assert best == 1 or (name == "image.PeakSignalNoiseRatio" and best > 80)
    assert score(Answered(1 - labels)) <= worst
    assert score.on(Examples(torch.zeros(5, 1), labels[:5]))(Answered(labels[:5])) == best


def perfect(criterion: Boxes, labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the numbers of all anchors for which the boxes found are those of the labels."""
    coder, matcher = criterion._net.box_coder, criterion._net.proposal_matcher
    numbers, logits = [], []
    for one in labels:
        matched = matcher(box_iou(one["boxes"], criterion.anchors))
        nearest = one["boxes"][matched.clamp(min=0)]
        numbers.append(coder.encode_single(nearest, criterion.anchors))
        classes = torch.where(matched >= 0, one["labels"][matched.clamp(min=0)], 0)
        logits.append(20.0 * nn.functional.one_hot(classes, CLASSES))
    return {"bbox_regression": torch.stack(numbers), "cls_logits": torch.stack(logits)}


def test_the_precision_of_boxes_is_that_of_pycocotools() -> None:
    pytest.importorskip("pycocotools")
    criterion, data = Boxes(detector()), scenes(box_labels, 300).validation
    precision = made("detection.MeanAveragePrecision", iou_thresholds=[0.5])
    score = Score(data, "map50_percent", precision, convert=criterion.chosen, read=map50)
    answers = perfect(criterion, data.labels)
    assert score(Answered(answers)) == pytest.approx(100, abs=0.1)
    assert float(criterion.loss(answers, data.labels)) < 0.01
    answers["cls_logits"] = answers["cls_logits"].roll(1, -1)
    assert score(Answered(answers)) < 5
    untrained = Heads(detector()).eval()
    with torch.no_grad():
        assert float(criterion.loss(untrained(data.inputs), data.labels)) > 1


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, wanted in (("torchmetrics", "R2Score"), ("pycocotools", "detection.MeanAveragePrecision")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, missing, None)
            with pytest.raises(ImportError, match=rf"needs the extra tasks, but {missing} is missing: pip install"):
                standard(wanted)
