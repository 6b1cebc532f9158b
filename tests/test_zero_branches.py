"""Graphs do without what adds zeros, and answer as before."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives.runtimes.passes.zero_branches import without_zeros


class Of(nn.Module):
    """A network that is one function of its input and of zeros of its shape."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(self.function(x, x.new_zeros(x.shape)))


def into(x: Tensor, zeros: Tensor) -> Tensor:
    zeros += x
    return F.relu(zeros)


def excited(x: Tensor, zeros: Tensor) -> Tensor:
    hidden = F.relu6(F.relu(zeros, inplace=True), inplace=True)
    return F.relu(x + hidden * torch.sigmoid(hidden.mean((2, 3), keepdim=True)))


def written(x: Tensor, zeros: Tensor) -> Tensor:
    zeros[:, 1:] = x[:, 1:]
    return F.relu(x + zeros)


def kept(x: Tensor, zeros: Tensor) -> Tensor:
    summed = zeros.add_(x)
    return F.relu(summed + zeros)


def filled(x: Tensor, zeros: Tensor) -> Tensor:
    zeros[:, :2].fill_(1.0)
    return F.relu(x + zeros)


def raised(x: Tensor, zeros: Tensor) -> Tensor:
    zeros.view(-1).add_(1.0)
    return F.relu(x + zeros)


def left(function: Any) -> list[str]:
    """Return the operators that are left, once the graph is seen to answer as the network."""
    x = torch.randn(2, 3, 4, 4)
    net = Of(function).eval()
    module: Any = torch.export.export(net, (x,)).module()
    without_zeros(module)
    given = x.clone()
    assert torch.equal(module(given), net(x.clone()))
    assert torch.equal(given, x)
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
        into,
        excited,
    ],
)
def test_a_sum_with_zeros_and_what_makes_them_are_left_out(function: Any) -> None:
    assert left(function) == ["aten.relu.default", "aten.cos.default"]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dropout", [F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout])
def test_dropout_is_left_out(dropout: Any, inplace: bool) -> None:  # noqa: FBT001
    found = left(lambda x, _: F.relu(dropout(torch.sin(x), training=False, inplace=inplace)))
    assert found == ["aten.sin.default", "aten.relu.default", "aten.cos.default"]


def test_what_zeros_do_not_leave_alone_stays() -> None:
    assert "aten.add.Tensor" in left(lambda x, zeros: F.relu(x + torch.cos(zeros)))
    assert "aten.add.Tensor" in left(lambda x, zeros: F.relu(x[:, :1] + zeros))  # which is stretched
    assert Counter(left(lambda x, zeros: F.relu(torch.sub(x, zeros))))["aten.sub.Tensor"] == 1


@pytest.mark.parametrize("function", [written, kept, filled, raised])
def test_what_was_zeros_and_is_written_to_stays(function: Any) -> None:
    assert "aten.add.Tensor" in left(function)


def later(x: Tensor, zeros: Tensor) -> Tensor:
    x = torch.sin(x)
    y = x + zeros
    return y.relu_() + x


def seen(x: Tensor, zeros: Tensor) -> Tensor:
    return (x + zeros).relu_()  # the network's own input


def twice(x: Tensor, zeros: Tensor) -> Tensor:
    del zeros
    once = F.relu(x)
    again = F.relu(once)
    again += 1
    return once + again


def cleared(x: Tensor, zeros: Tensor) -> Tensor:
    x = torch.sin(x)
    y = x * 1.0
    y.mul_(zeros)
    return x + y


@pytest.mark.parametrize("function", [later, seen, twice, cleared])
def test_what_is_written_later_is_written_nowhere_else(function: Any) -> None:
    assert left(function)


def test_sums_that_follow_each_other_are_left_out() -> None:
    assert left(lambda x, zeros: F.relu((x + zeros) + (zeros + zeros))) == ["aten.relu.default", "aten.cos.default"]
    assert left(lambda x, zeros: F.relu((zeros + (x + zeros)) + zeros)) == ["aten.relu.default", "aten.cos.default"]


def test_the_answer_itself_stays_what_it_is() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.new_zeros(x.shape)

    module: Any = torch.export.export(Sum(), (torch.randn(2, 3),)).module()
    without_zeros(module)
    assert [str(node.target) for node in module.graph.nodes if "add" in str(node.target)] == ["aten.add.Tensor"]
