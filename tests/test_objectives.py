"""The values of objectives against closed forms, counts by hand and another counter."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from objectives import (
    Bops,
    Examples,
    FrameTime,
    Latency,
    LatencyShare,
    Limit,
    Loss,
    Macs,
    Metric,
    Objective,
    Parameters,
    SizeBytes,
    Top1,
    TopK,
)
from objectives.outputs import outputs
from objectives.runtimes import OnnxRuntime
from spaces import Quantize, deployed
from spaces.testing import ObjectiveContract
from tests.small_study import splits, teacher

if TYPE_CHECKING:
    from collections.abc import Callable

# Multiply-adds of the layers of the teacher for one example: 64 pixels of 8 x 1 x 9, 16 of 8 x 8 x 9, and 32 x 4.
FIRST, SECOND, HEAD = 64 * 8 * 9, 16 * 8 * 8 * 9, 32 * 4
INPUTS = splits().validation.inputs


class Contract(ObjectiveContract):
    def teacher(self) -> tuple[nn.Module, Tensor]:
        return teacher(), splits().train.inputs[:8]


class TestTop1(Contract):
    def make(self) -> Objective:
        return Top1(splits().validation)


class TestTopK(Contract):
    def make(self) -> Objective:
        return TopK(splits().validation, 2)


class TestLoss(Contract):
    def make(self) -> Objective:
        return Loss(splits().validation)


class TestMacs(Contract):
    def make(self) -> Objective:
        return Macs(INPUTS)


class TestBops(Contract):
    def make(self) -> Objective:
        return Bops(INPUTS)


class TestParameters(Contract):
    def make(self) -> Objective:
        return Parameters()


class TestSizeBytes(Contract):
    def make(self) -> Objective:
        return SizeBytes()


class TestFrameTime(Contract):
    def make(self) -> Objective:
        return FrameTime(OnnxRuntime(), splits().train.inputs[:4], count=40)


class TestLatency(Contract):
    def make(self) -> Objective:
        return Latency(OnnxRuntime(), teacher(), INPUTS[:1], rounds=3, block_ms=0.1)


class TestLatencyShare(Contract):
    def make(self) -> Objective:
        return LatencyShare(Latency(OnnxRuntime(), teacher(), INPUTS[:1], rounds=3, block_ms=0.1))


CONTRACTS = [TestTop1, TestTopK, TestLoss, TestMacs, TestBops, TestParameters, TestSizeBytes, TestLatency,
             TestLatencyShare]  # fmt: skip


def test_reprs_are_the_same_in_another_process() -> None:
    code = "from tests.test_objectives import CONTRACTS; print(*(repr(c().make()) for c in CONTRACTS), sep='\\n')"
    command = [sys.executable, "-W", "ignore", "-c", code]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert elsewhere == [repr(contract().make()) for contract in CONTRACTS]


class Identity(nn.Module):
    """A network whose outputs are its inputs."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores


SCORES = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
FOUR = Examples(SCORES, torch.tensor([0, 1, 2, 2]))


@pytest.mark.parametrize(("k", "percent"), [(1, 50.0), (2, 75.0), (3, 100.0), (5, 100.0)])
def test_top_k_is_the_share_of_examples_with_their_label_among_the_k_largest_outputs(k: int, percent: float) -> None:
    assert TopK(FOUR, k)(Identity()) == percent
    assert TopK(FOUR, k).name == f"top{k}"


def test_top_1_is_top_k_for_one() -> None:
    assert Top1(FOUR)(Identity()) == TopK(FOUR, 1)(Identity())


def test_the_loss_of_equal_scores_is_the_logarithm_of_the_number_of_classes() -> None:
    equal = Examples(torch.zeros(6, 5), torch.arange(6) % 5)
    assert Loss(equal)(Identity()) == pytest.approx(torch.tensor(5.0).log().item(), abs=1e-6)


def test_the_loss_of_a_confident_wrong_output_is_its_margin() -> None:
    wrong = Examples(torch.tensor([[50.0, 0.0]]), torch.tensor([1]))
    assert Loss(wrong)(Identity()) == pytest.approx(50.0)


@pytest.mark.parametrize("metric", [Top1(FOUR), TopK(FOUR, 2), Loss(FOUR)])
def test_a_metric_can_be_measured_on_other_examples(metric: Metric) -> None:
    other = metric.on(FOUR.take(torch.tensor([3])))
    assert (other.name, other.direction) == (metric.name, metric.direction)
    assert other(Identity()) != metric(Identity())
    assert isinstance(metric, Metric)


@pytest.mark.parametrize("cost", [Macs(INPUTS), Bops(INPUTS), Parameters(), SizeBytes()])
def test_a_cost_is_known_before_training(cost: Objective) -> None:
    assert cost.is_cost
    assert not isinstance(cost, Metric)
    other = type(teacher())()
    assert cost(deployed(other, INPUTS[:8])) == cost(deployed(teacher(), INPUTS[:8]))


def test_multiply_adds_of_the_small_net_by_hand() -> None:
    assert Macs(INPUTS)(teacher()) == FIRST + SECOND + HEAD


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 64),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=10), 64),
    "shufflenet_v2_x0_5": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 64),
    "vit": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10), 32),
    "swin": (lambda: torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10), 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_adds_equal_the_count_of_torch(name: str) -> None:
    make, size = NETWORKS[name]
    network, image = make().eval(), torch.randn(1, 3, size, size)
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it cannot count fused attention on the CPU
        network(image)
    assert Macs(image)(network) == counter.get_total_flops() / 2


class Attention(nn.Module):
    """One attention head, computed by the fused operator of torch."""

    def forward(self, tokens: Tensor) -> Tensor:
        keys = tokens[:, :5]
        return nn.functional.scaled_dot_product_attention(tokens, keys, keys[..., :3])


def test_multiply_adds_of_attention_by_hand() -> None:
    queries, keys, width, values = 7, 5, 4, 3
    assert Macs(torch.randn(2, queries, width))(Attention()) == queries * keys * (width + values)


def test_multiply_adds_of_multi_head_attention_by_hand() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    projections, products, perceptron = 7 * 8 * 8 * 4, 7 * 7 * 8 * 2, 7 * 8 * 16 * 2
    assert Macs(torch.randn(1, 7, 8))(layer) == projections + products + perceptron
    assert torch.backends.mha.get_fastpath_enabled()


def test_norms_and_pooling_count_no_multiply_adds() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2), nn.GroupNorm(1, 3))
    assert Macs(torch.randn(1, 3, 8, 8))(network.eval()) == 0


def test_only_one_example_is_counted() -> None:
    assert Macs(INPUTS[:1])(teacher()) == Macs(INPUTS)(teacher())


def quantized(*widths: tuple[str, int, int]) -> nn.Module:
    return deployed(Quantize(widths).apply(teacher(), INPUTS[:32]), INPUTS[:8])


def test_bit_operations_by_hand() -> None:
    plan = (("first", 4, 32), ("second", 8, 6), ("head", 32, 8))
    assert Bops(INPUTS)(quantized(*plan)) == FIRST * 4 * 32 + SECOND * 8 * 6 + HEAD * 32 * 8
    assert Bops(INPUTS)(teacher()) == 1024 * (FIRST + SECOND + HEAD)


def test_parameters_by_hand() -> None:
    folded = (8 * 9 + 8) + (8 * 8 * 9 + 8) + (32 * 4 + 4)
    assert Parameters()(deployed(teacher(), INPUTS[:8])) == folded
    assert Parameters()(quantized(("first", 2, 8), ("second", 4, 32))) == folded


def test_the_excess_is_relative_to_the_bound() -> None:
    most = Limit(Macs(INPUTS), at_most=200)
    assert [most.excess(value) for value in (100, 200, 300)] == [-0.5, 0.0, 0.5]
    least = Limit(Top1(FOUR), at_least=80)
    assert [least.excess(value) for value in (100, 80, 60)] == [-0.25, 0.0, 0.25]
    assert (str(most), str(least)) == ("macs <= 200", "top1 >= 80")


def test_a_limit_takes_exactly_one_bound() -> None:
    for given in ({}, {"at_most": 1.0, "at_least": 1.0}):
        rule = r"exactly one of at_most, at_least, of_teacher and lose_at_most, but got (none|at_most=.*) for 'macs'"
        with pytest.raises(ValueError, match=rule):
            Limit(Macs(INPUTS), **given)


@pytest.mark.parametrize("bound", [0.0, -3.0])
def test_a_limit_is_positive(bound: float) -> None:
    with pytest.raises(ValueError, match=f"must be positive, but got {bound} for 'macs'"):
        Limit(Macs(INPUTS), at_most=bound)


def test_examples_have_as_many_labels_as_inputs_and_are_not_empty() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape("the same length and not be empty, but got float32 (3, 1) and int64 (2,)"),
    ):
        Examples(torch.zeros(3, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(
        ValueError,
        match=re.escape("the same length and not be empty, but got float32 (0, 1) and int64 (0,)"),
    ):
        Examples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))


def test_the_repr_of_examples_depends_on_their_content() -> None:
    other = Examples(FOUR.inputs, FOUR.labels.flip(0))
    assert repr(FOUR) == repr(FOUR.take(torch.arange(4)))
    assert repr(FOUR) != repr(other)


def test_batches_keep_the_order_and_include_the_last_partial_batch() -> None:
    batches = list(FOUR.batches(3))
    assert [len(inputs) for inputs, _ in batches] == [3, 1]
    assert torch.cat([labels for _, labels in batches]).equal(FOUR.labels)


def test_outputs_keep_the_order_for_any_batch_size() -> None:
    assert outputs(Identity(), SCORES, size=3).equal(SCORES)
    assert not outputs(teacher(), INPUTS).requires_grad
