"""Decisions on the values of constants are repeated in files; those on the values of inputs are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize, v2

from objectives import Macs
from objectives.decisions import Decision, decisions_of
from objectives.flat import flat
from objectives.runtimes import ExecuTorch, LiteRt, OnnxRuntime
from objectives.runtimes.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from objectives.runtimes import Runtime

X = torch.randn(3, 3, 8, 8)


class Deciding(nn.Module):
    """Multiplies its outputs by what a function decides."""

    def __init__(self, decide: Callable[[Any, Tensor], float]) -> None:
        super().__init__()
        self.decide = decide
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("scale", torch.tensor([2.0, 0.5]))

    def forward(self, x: Tensor) -> Any:
        return self.conv(x) * self.decide(self, x)


def view_of_constant(net: Any, _: Tensor) -> float:
    return float(net.scale[1:].exp().sum())


def constant_in_place(net: Any, _: Tensor) -> float:
    numbers = torch.zeros(3)
    numbers[1:] += net.scale
    return 3.0 if numbers.any() else 1.0


def input_in_place(_: Any, x: Tensor) -> float:
    numbers = torch.zeros(3)
    numbers[1:2] = x.flatten()[:1]
    return 3.0 if numbers.sum() > 0 else 1.0


CONSTANT: dict[str, Callable[[Any, Tensor], float]] = {
    "view": view_of_constant,
    "in place": constant_in_place,
    "whole number": lambda net, _: int(net.scale[0]),
    "list": lambda net, _: sum(net.scale.tolist()),
}
DEPENDING: dict[str, Callable[[Any, Tensor], float]] = {
    "sign": lambda _, x: 2.0 if x.sum() > 0 else 1.0,
    "in place": input_in_place,
    "shape": lambda _, x: int(torch.tensor(x.shape[0])),
    "random": lambda _, x: float(torch.rand(())),
}


@pytest.mark.parametrize("runtime", [OnnxRuntime(), LiteRt(), ExecuTorch()], ids=lambda runtime: runtime.name)
@pytest.mark.parametrize("kind", [Normalize, v2.Normalize])
def test_files_take_networks_that_normalize_their_inputs(runtime: Runtime, kind: Any, tmp_path: Path) -> None:
    net = nn.Sequential(kind([0.1, 0.2, 0.3], [0.5, 2.0, 1.0]), nn.Conv2d(3, 4, 1)).eval()
    runtime.export(net, X, tmp_path / "model")
    assert (runtime.load(tmp_path / "model")(X) - net(X)).abs().max() < 1e-4


@pytest.mark.parametrize("name", CONSTANT)
def test_decisions_on_constants_are_the_same_in_a_file(name: str, tmp_path: Path) -> None:
    net = Deciding(CONSTANT[name]).eval()
    OnnxRuntime().export(net, X, tmp_path / "model.onnx")
    assert (OnnxRuntime().load(tmp_path / "model.onnx")(X) - net(X)).abs().max() < 1e-5
    assert Macs(X)(net) == Macs(X)(net.conv)


@pytest.mark.parametrize("name", DEPENDING)
def test_decisions_on_inputs_are_never_repeated(name: str) -> None:
    net = Deciding(DEPENDING[name]).eval()
    assert decisions_of(net, X) == ()
    assert flat(net, X).module is net


def test_the_export_of_a_decision_on_inputs_is_refused_with_the_way_out(tmp_path: Path) -> None:
    net = Deciding(DEPENDING["sign"]).eval()
    with pytest.raises(ExportError, match=r"decides on values that depend on its inputs, .*; use torch\.where"):
        OnnxRuntime().export(net, X, tmp_path / "model.onnx")


def test_decisions_of_both_kinds_are_told_apart() -> None:
    net = Deciding(lambda net, x: float(net.scale[0]) if x.abs().sum() > 0 else 1.0).eval()
    found = decisions_of(net, X)
    assert found == (Decision(value=True, depends=True), Decision(2.0, depends=False, function=Tensor.__float__))


def test_counts_of_a_loop_over_a_size_do_not_repeat_decisions() -> None:
    def loop(net: Any, x: Tensor) -> Any:
        return torch.stack([net.conv(x).mean() for _ in range(x.shape[1])]).sum() if net.scale.any() else 1.0

    net = Deciding(loop).eval()
    assert Macs(X)(net) == 4 * Macs(X)(net.conv)
