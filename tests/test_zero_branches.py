"""Sums with zeros are removed from graphs, whose outputs do not change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives.runtimes.passes.zero_branches import remove_zero_branches


class FunctionNet(nn.Module):
    """A network that computes a function of its input and of zeros of the same shape."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(self.function(x, x.new_zeros(x.shape)))


def added_in_place(x: Tensor, zeros: Tensor) -> Tensor:
    zeros += x
    return F.relu(zeros)


def squeeze_excited(x: Tensor, zeros: Tensor) -> Tensor:
    hidden = F.relu6(F.relu(zeros, inplace=True), inplace=True)
    return F.relu(x + hidden * torch.sigmoid(hidden.mean((2, 3), keepdim=True)))


def partly_overwritten(x: Tensor, zeros: Tensor) -> Tensor:
    zeros[:, 1:] = x[:, 1:]
    return F.relu(x + zeros)


def read_after_write(x: Tensor, zeros: Tensor) -> Tensor:
    summed = zeros.add_(x)
    return F.relu(summed + zeros)


def partly_filled(x: Tensor, zeros: Tensor) -> Tensor:
    zeros[:, :2].fill_(1.0)
    return F.relu(x + zeros)


def written_through_a_view(x: Tensor, zeros: Tensor) -> Tensor:
    zeros.view(-1).add_(1.0)
    return F.relu(x + zeros)


def remaining(function: Any) -> list[str]:
    """Return the remaining operators, after checking that the graph computes the outputs of the network."""
    x = torch.randn(2, 3, 4, 4)
    net = FunctionNet(function).eval()
    module: Any = torch.export.export(net, (x,)).module()
    remove_zero_branches(module)
    inputs = x.clone()
    assert torch.equal(module(inputs), net(x.clone()))
    assert torch.equal(inputs, x)
    return [str(node.target) for node in module.graph.nodes if "aten" in str(node.target)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, zeros: F.relu(x + zeros),
        lambda x, zeros: F.relu(zeros + x),
        lambda x, zeros: F.relu(F.relu(x) + F.dropout(zeros, training=False)),
        lambda x, zeros: F.relu(x + 0.5 * F.hardswish(zeros)),
        lambda x, zeros: F.relu(x + (zeros + zeros)),
        lambda x, zeros: F.relu(F.dropout(F.dropout2d(x, training=False) + zeros, training=False)),
        added_in_place,
        squeeze_excited,
    ],
)
def test_sums_with_zeros_and_the_operators_that_compute_the_zeros_are_removed(function: Any) -> None:
    assert remaining(function) == ["aten.relu.default", "aten.cos.default"]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dropout", [F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout])
def test_dropout_is_removed(dropout: Any, inplace: bool) -> None:  # noqa: FBT001
    operators = remaining(lambda x, _: F.relu(dropout(torch.sin(x), training=False, inplace=inplace)))
    assert operators == ["aten.sin.default", "aten.relu.default", "aten.cos.default"]


def test_sums_that_are_not_no_ops_are_kept() -> None:
    assert "aten.add.Tensor" in remaining(lambda x, zeros: F.relu(x + torch.cos(zeros)))
    assert "aten.add.Tensor" in remaining(lambda x, zeros: F.relu(x[:, :1] + zeros))  # a broadcast sum
    assert Counter(remaining(lambda x, zeros: F.relu(torch.sub(x, zeros))))["aten.sub.Tensor"] == 1


@pytest.mark.parametrize("function", [partly_overwritten, read_after_write, partly_filled, written_through_a_view])
def test_sums_with_zeros_that_are_overwritten_are_kept(function: Any) -> None:
    assert "aten.add.Tensor" in remaining(function)


def written_later(x: Tensor, zeros: Tensor) -> Tensor:
    x = torch.sin(x)
    y = x + zeros
    return y.relu_() + x


def writes_into_the_input(x: Tensor, zeros: Tensor) -> Tensor:
    return (x + zeros).relu_()  # a write into the input of the network, if the sum were removed


def repeated_relu(x: Tensor, zeros: Tensor) -> Tensor:
    del zeros
    once = F.relu(x)
    again = F.relu(once)
    again += 1
    return once + again


def multiplied_by_zeros(x: Tensor, zeros: Tensor) -> Tensor:
    x = torch.sin(x)
    y = x * 1.0
    y.mul_(zeros)
    return x + y


@pytest.mark.parametrize("function", [written_later, writes_into_the_input, repeated_relu, multiplied_by_zeros])
def test_later_writes_do_not_reach_other_tensors(function: Any) -> None:
    assert remaining(function)


def test_consecutive_sums_are_removed() -> None:
    assert remaining(lambda x, zeros: F.relu((x + zeros) + (zeros + zeros))) == [
        "aten.relu.default",
        "aten.cos.default",
    ]
    assert remaining(lambda x, zeros: F.relu((zeros + (x + zeros)) + zeros)) == [
        "aten.relu.default",
        "aten.cos.default",
    ]


def test_an_output_of_the_graph_is_kept() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.new_zeros(x.shape)

    module: Any = torch.export.export(Sum(), (torch.randn(2, 3),)).module()
    remove_zero_branches(module)
    assert [str(node.target) for node in module.graph.nodes if "add" in str(node.target)] == ["aten.add.Tensor"]
