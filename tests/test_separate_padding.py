"""Convolutions that pad their own inputs, as TensorFlow's, become plain ones without a change of the outputs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from objectives import Examples, SizeBytes, Top1
from search import Budget, Recipe, Splits, StudySpec, UniformStart
from search.evaluation import subject
from search.evaluation.reference import prepared
from search.export import rebuild
from search.loop.run import run
from search.proposals.defaults import resolved
from search.results.export import export
from search.results.recorded import restored
from search.study.front import front
from search.study.storage import open_study
from search.study.weights import state_path
from spaces import (
    BitWidths,
    Depth,
    PruneRatios,
    Ranks,
    Resolution,
    Space,
    Temperatures,
    trace,
    unfuse_attention,
    with_plain_layers,
)
from spaces.testing.networks import scrambled
from tests.user_nets import CLASSES, Ported, Same, StaticSame, examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def ported() -> Ported:
    torch.manual_seed(1)
    return scrambled(Ported()).eval()


def assert_equal_outputs(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(one).eval()(x), copy.deepcopy(other).eval()(x))


def test_padded_convolutions_become_plain_ones() -> None:
    net, x = ported(), examples(Ported)
    assert {layer.name for layer in trace(net, x).layers if layer.stays} >= {"stem", "depthwise", "down", "even"}
    new = with_plain_layers(net, x)
    assert_equal_outputs(new, net, x)
    assert {layer.stays for layer in trace(new, x).layers} == {""}
    assert all(type(module) is nn.Conv2d for module in new.modules() if isinstance(module, nn.Conv2d))
    even = new.get_submodule("even")
    assert isinstance(even, nn.Conv2d)
    assert even.padding == (0, 2)  # equal on both sides, so that no module is added
    assert isinstance(net.stem, Same)
    assert not net.stem._forward_hooks


def test_a_one_sided_padding_stays_in_front() -> None:
    pad, convolution = with_plain_layers(ported(), examples(Ported)).get_submodule("down").children()
    assert isinstance(pad, nn.ZeroPad2d)
    assert pad.padding == (0, 1, 0, 1)
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.padding == (0, 0)


@pytest.mark.parametrize("size", [(8, 9), (9, 7), (5, 12)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, (5, 2)])
def test_every_padding_is_found(size: tuple[int, int], stride: int, kernel: int | tuple[int, int]) -> None:
    net, x = nn.Sequential(Same(3, 4, kernel, stride, dilation=(1, 2))), torch.randn(2, 3, *size)
    new = with_plain_layers(net, x)
    assert not any(isinstance(module, Same) for module in new.modules())
    assert_equal_outputs(new, net, x)


class Causal(nn.Conv1d):
    """A convolution that reads the past alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Equal(nn.Conv2d):
    """A convolution that pads in the function that torch's forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(x, (1, 1, 1, 1)), weight, bias)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Causal(4, 4, 3, dilation=8), (4, 16)),
        (Causal(4, 6, 5), (4, 9)),
        (Equal(3, 4, 3, stride=2), (3, 8, 8)),
    ],
)
def test_other_paddings_are_found(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net, x = nn.Sequential(layer, nn.ReLU()), torch.randn(2, *shape)
    new = with_plain_layers(net, x)
    assert type(layer) not in {type(module) for module in new.modules()}
    assert_equal_outputs(new, net, x)


class Scaled(Same):
    """A convolution that does more than that."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.1 * super().forward(x)


class Dropping(Same):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, self.training))


class Reflecting(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class InAList(nn.Module):
    """A network that calls its convolution from a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Same(3, 4, 3)
        self.called = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        return self.called[0](x)  # type: ignore[no-any-return]


class WithCounts(Same):
    """A convolution with an interface of its own."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x.numel()


class Twice(nn.Module):
    """A network that applies one convolution to two sizes, with different paddings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3)) + self.stem(x[..., 1:, 1:]).mean((2, 3))  # type: ignore[no-any-return]


class ReadsItsPadding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.own = Same(3, 4, 3), StaticSame(4, 4, 3, 1, 1, (1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.stem(x)) + self.own.static_padding.padding[0]  # type: ignore[no-any-return]


def test_what_cannot_be_separated_is_kept() -> None:
    x = torch.randn(2, 3, 8, 8)
    hooked = nn.Sequential(Same(3, 4, 3))
    hooked[0].register_forward_hook(lambda _, __, output: 2 * output)
    kept = (Scaled(3, 4, 3), Dropping(3, 4, 3), Reflecting(3, 4, 3), WithCounts(3, 4, 3), nn.Conv2d(3, 4, 3))
    framed = F.pad(x[..., 1:-1, 1:-1], (1, 1, 1, 1))  # reflected or not, its border is zero
    for net in (Twice(), InAList(), hooked, *map(nn.Sequential, kept)):
        assert with_plain_layers(net, x) is net
        assert with_plain_layers(net, framed) is net
    mixed = nn.Sequential(nn.Sequential(Same(3, 4, 3)), Reflecting(4, 4, 3))
    assert {type(module) for module in with_plain_layers(mixed, x).modules()} >= {nn.Conv2d, Reflecting}
    new = with_plain_layers(reads := ReadsItsPadding(), x)
    assert type(new.get_submodule("stem")) is nn.Conv2d
    assert type(new.get_submodule("own")) is StaticSame
    assert_equal_outputs(new, reads, x)


def test_nothing_is_replaced_with_inputs_that_the_network_does_not_take() -> None:
    net = ported()
    assert with_plain_layers(net, torch.randn(2, 4, 12, 12)) is net


def test_smaller_inputs_are_offered() -> None:
    x = examples(Ported)
    space = Space((Resolution(), PruneRatios()), Temperatures())
    anatomy = space.trace(with_plain_layers(ported(), x), x)
    assert Resolution().acts_on(anatomy)["wide"].startswith("inputs of 6x6, ")


@pytest.mark.parametrize("prepare", [with_plain_layers, unfuse_attention], ids=["now", "version 0.1"])
def test_an_export_is_rebuilt_from_the_users_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[nn.Module, Tensor], nn.Module]
) -> None:
    monkeypatch.setattr(subject, "with_plain_layers", prepare)
    data = Examples(examples(Ported, 48), torch.arange(48) % CLASSES)
    space = Space((PruneRatios(), Depth(), Ranks(), BitWidths()), Temperatures())
    spec = StudySpec(
        "ported", ported(), Splits(data, data, data), space, objectives=(Top1(data), SizeBytes()),
        recipe=Recipe(epochs=1, batch_size=16), budget=Budget(2), start=UniformStart(),
    )  # fmt: skip
    spec = resolved(spec)
    study = open_study(spec, tmp_path, None, create=True)
    context, reference = prepared(spec, torch.device("cpu"), tmp_path)
    assert run(study, context, tmp_path)
    member = front(study)[0]
    _, network = restored(member, context, state_path(tmp_path, member.number))
    export(member, context, state_path(tmp_path, member.number), tmp_path / "out", reference)
    assert torch.equal(rebuild(Ported(), tmp_path / "out")(data.inputs), network(data.inputs))
