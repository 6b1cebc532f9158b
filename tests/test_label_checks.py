"""Labels that do not belong to the outputs are refused before anything is trained: shapes that broadcast above all."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Agreement, Examples, Loss, Top1, TopK
from search.evaluation.label_checks import check_finite, check_labels, check_loss, check_probabilities, classes_of
from search.study.errors import UserError
from spaces import Distill, Imitate

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, FIVE = torch.randn(5, 1), torch.randn(5, 3)


@dataclasses.dataclass(frozen=True)
class Own:
    """A recovery of a user."""

    function: Callable[[Any, Any], Any]

    def loss(self, student: Any, teacher: Any, labels: Any) -> Any:
        return self.function(student, labels)

    def words(self) -> str:
        return ""


BROADCASTING: dict[str, tuple[Any, Tensor, Any]] = {
    "imitation of (B, 1) with (B,)": (Imitate(), ONE, torch.randn(5)),
    "imitation of (B,) with (B, 1)": (Imitate(), torch.randn(5), ONE),
    "a loss of the task": (Imitate(loss_of=lambda out, y: (out - y).square().mean()), ONE, torch.randn(5)),
    "torch's mse_loss": (Own(F.mse_loss), ONE, torch.randn(5)),
    "torch's l1_loss": (Own(F.l1_loss), ONE, torch.randn(5)),
    "torch's smooth_l1_loss": (Own(F.smooth_l1_loss), ONE, torch.randn(5)),
    "arithmetic": (Own(lambda out, y: (out * y).mean()), ONE, torch.randn(5)),
    "a class of torch": (Own(nn.HuberLoss()), ONE, torch.randn(5)),
    "images without their channel": (
        Own(lambda out, y: (out - y).abs().mean()), torch.randn(5, 1, 4, 4), torch.randn(5, 4, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROADCASTING)
def test_a_loss_that_compares_each_with_each_is_refused(case: str) -> None:
    recovery, output, labels = BROADCASTING[case]
    with pytest.raises(UserError, match=re.escape(str(tuple(labels.shape)))) as error:
        check_loss(recovery, output, labels)
    assert "\n" not in str(error.value)


FITTING: dict[str, tuple[Any, Any, Any]] = {
    "classes": (Distill(), FIVE, torch.arange(5) % 3),
    "probabilities": (Distill(), FIVE, torch.full((5, 3), 1 / 3)),
    "no labels": (Distill(), FIVE, None),
    "no labels of a regression": (Imitate(), ONE, None),
    "numbers": (Imitate(), ONE, torch.randn(5, 1)),
    "a weight for each class": (Own(lambda out, y: (out * torch.ones(3) - y).square().mean()), FIVE, torch.randn(5, 3)),
    "pairs of embeddings": (Own(lambda out, y: (out @ out.T - (y[:, None] == y).float()).square().mean()), FIVE,
                            torch.arange(5)),
    "a dict": (Imitate(loss_of=lambda out, y: F.cross_entropy(out["a"], y)), {"a": FIVE, "b": ONE},
               torch.arange(5) % 3),
    "several tags": (Imitate(loss_of=F.binary_cross_entropy_with_logits), FIVE, torch.ones(5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", FITTING)
def test_a_loss_of_outputs_with_their_own_labels_is_accepted(case: str) -> None:
    check_loss(*FITTING[case])


def test_a_loss_that_fails_or_is_no_number_is_named_with_the_shapes() -> None:
    with pytest.raises(UserError, match=r"failed for outputs float32 \(5, 3\) and labels int64 \(4,\)"):
        check_loss(Distill(), FIVE, torch.arange(4) % 3)
    with pytest.raises(UserError, match=r"must be one number, .* it returned float32 \(5, 3\)"):
        check_loss(Own(lambda out, _: out), FIVE, torch.arange(5))


def test_class_labels_must_have_the_shape_of_the_outputs_without_classes() -> None:
    assert classes_of(torch.zeros(5, 7, 4, 4), torch.zeros(5, 4, 4, dtype=torch.int64)) == 7
    with pytest.raises(UserError, match=r"but got outputs float32 \(5, 1\) and labels int64 \(5, 1\)"):
        classes_of(ONE, torch.zeros(5, 1, dtype=torch.int64))
    with pytest.raises(UserError, match=r"needs one output tensor .* but the teacher returns {'out': float32"):
        classes_of({"out": FIVE}, torch.arange(5))


def test_labels_of_places_without_a_class_must_be_named() -> None:
    maps = Examples(torch.zeros(2, 1, 2, 2), torch.tensor([[[0, 1], [255, 2]]] * 2))
    with pytest.raises(UserError, match=r"labels from 0 to 255; .*Temperatures\(ignore_index=255\)"):
        check_labels("training", maps, 3)
    check_labels("training", maps, 3, 255)


@pytest.mark.parametrize(
    ("labels", "classes", "remedy"),
    [
        ([0, 1, 1], 1, "Imitations(loss=torch.nn.functional.binary_cross_entropy_with_logits), and a Score"),
        ([1, 2, 3], 3, "labels from 1 to 3; they are counted from 1, so subtract 1 from all"),
        ([0, 1, 4], 3, "labels from 0 to 4; renumber them, or use a teacher with more outputs"),
        ([-1, 0, 2], 3, "Temperatures(ignore_index=-1)"),
    ],
)
def test_the_remedy_fits_the_labels(labels: list[int], classes: int, remedy: str) -> None:
    with pytest.raises(UserError, match=re.escape(remedy)) as error:
        check_labels("training", Examples(torch.zeros(3, 2), torch.tensor(labels)), classes)
    assert ("ignore_index" in str(error.value)) == ("ignore_index" in remedy)


def test_several_tags_are_no_probabilities() -> None:
    check_probabilities(FIVE, torch.full((5, 3), 1 / 3))
    with pytest.raises(UserError, match=r"sum to 3 to 3; for several tags an example use recovery=Imitations\(loss="):
        check_probabilities(FIVE, torch.ones(5, 3))


def test_numbers_that_are_not_finite_are_counted() -> None:
    inputs = torch.zeros(5, 2)
    inputs[2, 1] = torch.nan
    with pytest.raises(UserError, match=r"but 1 of 5 test inputs contain nan or infinity, the first at index 2"):
        check_finite("test", Examples(inputs, torch.arange(5)))
    with pytest.raises(UserError, match="but 5 of 5 test labels contain nan or infinity"):
        check_finite("test", Examples(torch.zeros(5, 2), torch.full((5,), torch.inf)))


SCORES = torch.eye(3).repeat(2, 1)


@pytest.mark.parametrize("metric", [Top1, TopK, Loss])
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.eye(3).repeat(2, 1).long(), "labels int64 (6, 3); labels.argmax(1) turns one-hot labels"),
        (torch.arange(6)[:, None], "labels int64 (6, 1); reshape the labels"),
        (torch.arange(6.0), "labels float32 (6,)"),
        (None, "the examples have none; Agreement(examples, teacher) needs none"),
    ],
)
def test_metrics_refuse_labels_of_another_shape(metric: Any, labels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        metric(Examples(SCORES, labels))(nn.Identity())


def test_metrics_count_class_maps_without_the_ignored_places() -> None:
    scores = torch.tensor([[[5.0, 0.0, 5.0]], [[0.0, 5.0, 0.0]]])[None].expand(1, 2, 1, 3)
    maps = Examples(scores, torch.tensor([[[0, 0, 255]]]))
    assert Top1(maps, ignore_index=255)(nn.Identity()) == 50
    assert TopK(maps, 2, ignore_index=255)(nn.Identity()) == 100
    wanted = F.cross_entropy(scores.double(), maps.labels, ignore_index=255)
    assert Loss(maps, ignore_index=255)(nn.Identity()) == pytest.approx(float(wanted))


def test_the_loss_takes_probabilities() -> None:
    targets = torch.softmax(torch.randn(6, 3), 1)
    wanted = F.cross_entropy(SCORES.double(), targets.double())
    assert Loss(Examples(SCORES, targets))(nn.Identity()) == pytest.approx(float(wanted))


def test_agreement_needs_no_labels() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:3], x[3:].flip(1)])

    agreement = Agreement(Examples(SCORES, None), nn.Identity())
    assert agreement(nn.Identity()) == 100
    assert agreement(Turned()) == pytest.approx(100 * 4 / 6)


def test_ignored_places_do_not_count_in_the_distillation() -> None:
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    labels = torch.randint(0, 3, (2, 4))
    whole = Distill(ignore_index=9).loss(student[:, :, :2], teacher[:, :, :2], labels[:, :2])
    labels[:, 2:] = 9
    assert float(Distill(ignore_index=9).loss(student, teacher, labels)) == pytest.approx(float(whole))
    assert float(Distill(ignore_index=9).loss(student, teacher, torch.full((2, 4), 9))) == 0


def test_a_loss_of_the_task_counts_every_output_alike() -> None:
    teacher = {"a": torch.tensor([[0.0], [2.0]]), "b": torch.tensor([[0.0], [2000.0]])}
    student = {"a": torch.tensor([[1.0], [3.0]]), "b": torch.tensor([[1000.0], [3000.0]])}
    imitation = Imitate(weight=0.25, loss_of=lambda out, y: (out["a"] - y).abs().mean())
    assert float(imitation.loss(student, teacher, torch.zeros(2, 1))) == pytest.approx(0.25 * 1 + 0.75 * 2)
    assert float(imitation.loss(student, teacher, None)) == pytest.approx(1)
