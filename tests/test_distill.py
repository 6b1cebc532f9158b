"""The distillation loss equals its closed forms, and the ranges of its parameters are checked."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import Distill, Temperatures


@pytest.fixture
def outputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return outputs of a student, outputs of a teacher, and labels."""
    return torch.randn(6, 4, requires_grad=True), 3 * torch.randn(6, 4), torch.randint(0, 4, (6,))


def test_weight_zero_is_cross_entropy(outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    student, teacher, labels = outputs
    assert torch.equal(Distill(7.0, 0.0).loss(student, teacher, labels), F.cross_entropy(student, labels))


def test_the_loss_at_weight_one_is_zero_where_student_and_teacher_agree(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    student, _, labels = outputs
    assert Distill(4.0, 1.0).loss(student, student.detach() + 2, labels).item() == pytest.approx(0, abs=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_docstring(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    student, teacher, labels = outputs
    soft, known = (student / 3).softmax(1), (teacher / 3).softmax(1)
    divergence = (known * (known / soft).log()).sum(1).mean()
    want = 0.4 * 9 * divergence + 0.6 * F.cross_entropy(student, labels)
    torch.testing.assert_close(Distill(3.0, 0.4).loss(student, teacher, labels), want)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0, 1000.0])
def test_the_gradient_is_scaled_by_the_temperature(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], temperature: float
) -> None:
    student, teacher, labels = outputs
    Distill(temperature, 1.0).loss(student, teacher, labels).backward()
    want = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)) / 6
    torch.testing.assert_close(student.grad, want.detach(), atol=1e-4, rtol=1e-3)


def test_the_gradient_at_high_temperatures_is_that_of_matching_logits(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    student, teacher, labels = outputs
    Distill(1e3, 1.0).loss(student.double(), teacher.double(), labels).backward()
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad, (gap / 4 / 6).detach(), atol=1e-3, rtol=1e-2)


@given(st.floats(0.01, 20), st.floats(0.01, 20), st.floats(0, 1))
def test_the_usual_parameters_lie_in_the_ranges(one: float, other: float, heaviest: float) -> None:
    axis = Temperatures(min(one, other), max(one, other), heaviest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = axis.suggest(FixedTrial(axis.usual()))
    assert axis.lowest <= drawn.temperature <= axis.highest
    assert 0 <= drawn.weight <= heaviest
    assert drawn == axis.suggest(FixedTrial(axis.usual()))


def test_the_usual_temperature_is_four_and_the_usual_weight_seven_tenths() -> None:
    assert Temperatures().suggest(FixedTrial(Temperatures().usual())) == Distill() == Distill(4.0, 0.7)


def test_words_name_temperature_and_weight() -> None:
    assert Distill(4.0, 0.7).words() == "T=4, weight 0.7"
    assert Distill(4.0, 0.0).words() == "labels only"


def test_wrong_ranges_name_the_rule_and_the_values() -> None:
    with pytest.raises(ValueError, match=r"temperature must be positive, but got 0.0"):
        Distill(temperature=0.0)
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\], but got 1.5"):
        Distill(weight=1.5)
    with pytest.raises(ValueError, match=r"0 < lowest <= highest must hold, and both be finite, but got 5.0 and 2.0"):
        Temperatures(lowest=5.0, highest=2.0)
    with pytest.raises(ValueError, match=r"heaviest must be in \[0, 1\], but got -0.1"):
        Temperatures(heaviest=-0.1)
