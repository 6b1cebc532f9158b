"""The studies of tasks: their pictures, their labels, and their specifications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from objectives.trees import at, run
from studies import pasted_digits, scenes, tasks
from studies.pasted_digits import DIGIT, SIZE, Pasted
from studies.scenes import VOID

if TYPE_CHECKING:
    from collections.abc import Callable

    from search import StudySpec

FEW: dict[Callable[..., StudySpec], dict[str, int]] = {
    scenes.maps: {"pictures": 20},
    scenes.boxes: {"pictures": 20},
    scenes.sums: {"pictures": 20},
    tasks.keypoints: {"pictures": 20},
    tasks.tags: {"pictures": 20},
    tasks.enlarged: {"pictures": 20},
    tasks.embeddings: {},
    tasks.numbers: {"rows": 40},
}


@pytest.mark.parametrize("study", FEW, ids=lambda study: study.__name__)
def test_a_study_of_a_task_has_a_loss_and_a_score(study: Callable[..., StudySpec], monkeypatch: Any) -> None:
    if study is not tasks.keypoints and study is not tasks.embeddings and study is not scenes.sums:
        pytest.importorskip("torchmetrics")
    if study is scenes.boxes:
        pytest.importorskip("pycocotools")
    for module in (scenes, tasks):
        monkeypatch.setattr(module, "trained", lambda net, *_, **__: net.eval())
    spec = study(runtime="onnx", **FEW[study])
    some = spec.splits.train.head(8)
    outputs = run(spec.teacher, some.inputs)
    recovery: Any = spec.space.recovery
    loss = (recovery.loss or F.mse_loss)(outputs, some.labels)
    assert loss > 0
    loss.backward()
    assert all(weight.grad is not None for weight in spec.teacher.parameters())
    score: Any = spec.objectives[0]
    value = score(spec.teacher)
    assert value == score(spec.teacher)
    assert torch.tensor(value).isfinite()
    assert score.on(spec.splits.test)(spec.teacher) != value or value in {0, 100}
    assert study(runtime="litert", **FEW[study]).name == f"{spec.name}-litert"


def pasted(most: int = 3, margin: int = 0) -> Pasted:
    """Return the pictures of a training split."""
    kept: list[Pasted] = []

    def label(made: Pasted) -> Tensor:
        kept.append(made)
        return tasks.tag_labels(made)

    pasted_digits.scenes(label, 40, most, margin)
    return kept[0]


def test_no_digit_is_in_two_splits_and_none_overlaps_another() -> None:
    made = pasted()
    assert 1 <= made.there.sum(1).min() < made.there.sum(1).max() == 3
    assert made.pictures.shape == (40, 1, SIZE, SIZE)
    shown = torch.zeros(40, SIZE, SIZE)
    for column in range(3):
        shown[made.pixels(column)] += 1
    assert shown.max() == 1
    assert shown.sum() == made.there.sum() * DIGIT**2
    bounds = pasted_digits.OF_SPLITS
    assert list(bounds) == sorted(set(bounds))


def test_class_maps_boxes_and_tags_say_the_same() -> None:
    made = pasted()
    maps, boxes, tags = scenes.class_maps(made), scenes.box_labels(made), tasks.tag_labels(made)
    for picture in range(40):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        found, labels = boxes[picture]["boxes"].int().tolist(), boxes[picture]["labels"].tolist()
        for (left, top, right, bottom), label in zip(found, labels, strict=True):
            part = maps[picture, top:bottom, left:right]
            inside[top:bottom, left:right] = True
            assert set(part.unique().tolist()) == {0, label, VOID}
        assert (maps[picture][~inside] == 0).all()
        assert {int(one) + 1 for one in tags[picture].nonzero()} == set(labels)


def test_points_lie_on_the_digit_and_those_outside_of_the_picture_are_not_seen() -> None:
    made = pasted(most=1, margin=tasks.OUTSIDE)
    labels = tasks.point_labels(made)
    assert labels["points"].shape == (40, 3, 2)
    assert 0 < labels["seen"].mean() < 1
    top, bottom, middle = (labels["points"] * SIZE).unbind(1)
    assert (top[:, 1] < middle[:, 1]).all()
    assert (middle[:, 1] < bottom[:, 1]).all()
    corner = made.corners[:, 0].flip(1)
    for point in (top, bottom, middle):
        assert ((point >= corner) & (point <= corner + DIGIT)).all()
    perfect = {"points": labels["points"], "seen": 20 * labels["seen"] - 10}
    assert tasks.found_points(perfect, labels) == 100
    assert float(tasks.loss_of_points(perfect, labels)) < 1e-3
    assert tasks.found_points(perfect | {"points": labels["points"] + 0.1}, labels) < 50


def test_sums_are_those_of_the_digit_and_the_number() -> None:
    made = scenes.numbers_and_sums(pasted(most=1))
    assert torch.allclose(made.labels["sum"][:, 0], 10 * made.inputs[1][:, 0] + made.labels["digit"])


def test_large_pictures_are_those_of_the_digits_without_noise() -> None:
    made = pasted()
    data = tasks.small_and_large(made)
    assert data.inputs.shape == (40, 1, SIZE // 2, SIZE // 2)
    noise = made.pictures - data.labels
    assert -1e-6 <= noise.min() < noise.max() <= pasted_digits.NOISE + 1e-6


def test_the_contrastive_loss_is_least_where_equal_labels_have_equal_vectors() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    together, apart = F.one_hot(labels, 5).float(), torch.eye(5)
    expected = 0.8 * (1 + 3 * torch.tensor(-10.0).exp()).log()
    assert float(tasks.contrastive(together, labels)) == pytest.approx(float(expected), abs=1e-6)
    assert float(tasks.contrastive(apart, labels)) == pytest.approx(0.8 * torch.tensor(4.0).log().item())
    vectors = together.clone().requires_grad_()
    tasks.contrastive(vectors, labels).backward()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_recall_looks_at_all_vectors_of_all_batches() -> None:
    metric = tasks.NearestIsSame()
    labels = torch.tensor([0, 1, 2, 0, 1, 3])
    vectors = F.normalize(F.one_hot(labels, 4).float() + 0.01 * torch.arange(6)[:, None])
    for part in (slice(0, 3), slice(3, 6)):
        metric.update(at(vectors, part), at(labels, part))
    assert metric.compute() == pytest.approx(100 * 4 / 6)
    metric.reset()
    metric.update(nn.functional.normalize(torch.ones(2, 4)), torch.tensor([1, 1]))
    assert metric.compute() == 100
