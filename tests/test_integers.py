"""Graphs for integer kernels compute the outputs of their networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives.runtimes.passes.integers import _clamp_before_movers


class FunctionNet(nn.Module):
    """A network that computes a function of its input and of the output of a convolution."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.conv(x))  # type: ignore[no-any-return]


def operators_of(function: Any) -> list[str]:
    """Return the operators in order; check that the graph has the same outputs and does not write into its input."""
    x, net = torch.randn(2, 3, 8, 8), FunctionNet(function).eval()
    module: Any = torch.export.export(net, (x,)).module()
    _clamp_before_movers(module.graph)
    module.graph.lint()
    module.recompile()
    inputs = x.clone()
    torch.testing.assert_close(module(inputs), net(x.clone()))
    expected = x.clone()
    net(expected)
    assert torch.equal(inputs, expected)
    return [node.target.__name__.split(".")[0] for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("function", [
    lambda _, y: F.relu(F.max_pool2d(y, 2).flatten(1)),
    lambda _, y: F.relu(F.max_pool2d(y, 2)).flatten(1),
    lambda _, y: F.relu(F.max_pool2d(y, 2), inplace=True).flatten(1),
    lambda _, y: F.hardtanh(F.max_pool2d(y, 3, padding=1), 0.5, 2.0).flatten(1),
])  # fmt: skip
def test_clamps_are_moved_directly_after_the_layer(function: Any) -> None:
    first, second, *_ = operators_of(function)
    assert first == "conv2d"
    assert second in {"relu", "hardtanh"}


def shared_input(_: Tensor, y: Tensor) -> Tensor:
    a, b = y.chunk(2, 1)
    return F.relu(F.max_pool2d(a, 2), inplace=True) + F.avg_pool2d(b, 2) + F.avg_pool2d(a, 2)


def slice_with_other_readers(_: Tensor, y: Tensor) -> Tensor:
    return F.relu(y[:, :4].flatten(2), inplace=True).sum(2) + y.mean((2, 3))[:, 4:]


def write_through_a_view(_: Tensor, y: Tensor) -> Tensor:
    F.relu(y.flatten(2), inplace=True)
    return y + 1


def written_in_between(_: Tensor, y: Tensor) -> Tensor:
    pooled = F.max_pool2d(y.unsqueeze(0).squeeze(0), 2)
    y += 1
    return F.relu(pooled) + F.max_pool2d(y, 2)


def clamp_of_the_network_input(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(x, 2), inplace=True).sum(1) + y.mean((1, 2, 3)).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    "function",
    [
        shared_input,
        slice_with_other_readers,
        write_through_a_view,
        written_in_between,
        clamp_of_the_network_input,
    ],
)
def test_tensors_with_other_readers_do_not_change(function: Any) -> None:
    assert "relu" in " ".join(operators_of(function))
