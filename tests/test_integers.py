"""Graphs for integer kernels compute the outputs of their networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives.runtimes import ExecuTorch, LiteRt, Runtime
from objectives.runtimes.passes.integers import _clamp_before_movers
from spaces import Quantize, deployed
from spaces.testing.runtime_contract import sqnr

if TYPE_CHECKING:
    from pathlib import Path


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


class Dense(nn.Module):
    """Averages and concatenates what two layers compute, one a hundred times as large; a norm makes them alike."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = (nn.Conv2d(3, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.large.weight *= 100

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([F.avg_pool2d(self.large(x), 4), F.avg_pool2d(self.small(x), 4)], 1)
        return self.last(F.relu(self.norm(joined)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", [LiteRt(), ExecuTorch()], ids=["litert", "executorch"])
def test_small_averages_and_parts_of_a_concatenation_are_not_lost_before_a_norm(
    runtime: Runtime, tmp_path: Path
) -> None:
    """Only operators in floating point read them, so that they need no grid that inputs and output share."""
    pytest.importorskip(runtime.name.replace("litert", "litert_torch"))
    torch.manual_seed(0)
    net, inputs, path = Dense(), torch.randn(64, 3, 8, 8), tmp_path / "model"
    for _ in range(50):
        net(inputs)
    net.eval()
    finished = deployed(Quantize(tuple((name, 8, 8) for name in ("large", "small", "last"))).apply(net, inputs), inputs)
    runtime.export(finished, inputs, path)
    assert sqnr(finished(inputs).detach(), runtime.load(path)(inputs)) > 35  # 5.7 on one grid
