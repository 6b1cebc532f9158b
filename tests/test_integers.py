"""Graphs for integer kernels answer as the networks that they are made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives.runtimes.passes.integers import _clamp_first


class Of(nn.Module):
    """A convolution, and a function of its input and what it gives."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.conv(x))  # type: ignore[no-any-return]


def moved(function: Any) -> list[str]:
    """Return the operators in order, once the graph is seen to answer as the network and to leave its input alone."""
    x, net = torch.randn(2, 3, 8, 8), Of(function).eval()
    module: Any = torch.export.export(net, (x,)).module()
    _clamp_first(module.graph)
    module.graph.lint()
    module.recompile()
    given = x.clone()
    torch.testing.assert_close(module(given), net(x.clone()))
    own = x.clone()
    net(own)
    assert torch.equal(given, own)
    return [node.target.__name__.split(".")[0] for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("function", [
    lambda _, y: F.relu(F.max_pool2d(y, 2).flatten(1)),
    lambda _, y: F.relu(F.max_pool2d(y, 2)).flatten(1),
    lambda _, y: F.relu(F.max_pool2d(y, 2), inplace=True).flatten(1),
    lambda _, y: F.hardtanh(F.max_pool2d(y, 3, padding=1), 0.5, 2.0).flatten(1),
])  # fmt: skip
def test_clamps_come_right_behind_the_layer(function: Any) -> None:
    first, second, *_ = moved(function)
    assert first == "conv2d"
    assert second in {"relu", "hardtanh"}


def shared(_: Tensor, y: Tensor) -> Tensor:
    a, b = y.chunk(2, 1)
    return F.relu(F.max_pool2d(a, 2), inplace=True) + F.avg_pool2d(b, 2) + F.avg_pool2d(a, 2)


def sliced(_: Tensor, y: Tensor) -> Tensor:
    return F.relu(y[:, :4].flatten(2), inplace=True).sum(2) + y.mean((2, 3))[:, 4:]


def seen(_: Tensor, y: Tensor) -> Tensor:
    F.relu(y.flatten(2), inplace=True)
    return y + 1


def later(_: Tensor, y: Tensor) -> Tensor:
    pooled = F.max_pool2d(y.unsqueeze(0).squeeze(0), 2)
    y += 1
    return F.relu(pooled) + F.max_pool2d(y, 2)


def own(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(x, 2), inplace=True).sum(1) + y.mean((1, 2, 3)).reshape(-1, 1, 1)


@pytest.mark.parametrize("function", [shared, sliced, seen, later, own])
def test_what_others_see_is_as_it_was(function: Any) -> None:
    assert "relu" in " ".join(moved(function))
