"""The layers of a traced network, and the errors of networks that cannot be traced."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from objectives import Macs
from objectives.mac_counter import count
from spaces import Distill, Factorize, Layer, Plan, Quantize, deployed, trace
from spaces.network.anatomy import Run
from spaces.testing.networks import NETWORKS, Net, Normed, Plain, Separable, Wide, example, run, teacher

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("kind", [*NETWORKS, Wide])
def test_multiply_adds_equal_those_that_fvcore_counts(kind: type[Net]) -> None:
    net = teacher(kind)
    counted = count(net, example(net))
    layers = trace(net, example(net)).layers
    assert {layer.name: layer.macs for layer in layers} == {layer.name: counted[layer.name] for layer in layers}
    assert sum(layer.macs for layer in layers) == counted[""]


def test_layers_come_in_order_of_execution_with_their_geometry() -> None:
    net = teacher(Separable)
    layers = trace(net, example(net)).layers
    assert [layer.name for layer in layers] == ["stem", "depthwise", "pointwise", "head"]
    assert layers[0] == Layer("stem", "Conv2d", 8, 3, (3, 3), (2, 2), 1, (Run(1, (8, 8), (4, 4)),), tied=False)
    assert layers[3] == Layer("head", "Linear", 5, 12, (), (), 1, (Run(1, (), ()),), tied=False)
    assert [layer.depthwise for layer in layers] == [False, True, False, False]


def test_modules_with_weights_that_no_axis_acts_on_are_listed() -> None:
    net = teacher(Normed)
    others = (("group_norm", "GroupNorm"), ("slopes", "PReLU"), ("layer_norm", "LayerNorm"))
    assert trace(net, example(net)).others == others


class Tokens(Net):
    """A network that moves the pixels into the batch, and calls one layer for each half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.shared = nn.Linear(6, 6)
        self.idle = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)
        self.head.weight = nn.Parameter(torch.randn(5, 6))
        self.tied = nn.Linear(6, 5)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.permute(0, 2, 3, 1).flatten(0, 2))
        left, right = tokens.chunk(2)
        tokens = torch.cat([self.shared(left), self.shared(right)]).reshape(len(x), -1, 6)
        return run(tokens.mean(1), self.head) + run(tokens.amax(1), self.tied)


def test_all_calls_and_all_tokens_of_one_example_are_counted() -> None:
    net = Tokens().eval()
    layers = {layer.name: layer for layer in trace(net, example(net)).layers}
    assert (layers["embed"].positions, len(layers["embed"].runs)) == (64, 1)
    assert (layers["shared"].positions, len(layers["shared"].runs)) == (64, 2)
    counted = count(net, example(net))
    assert {name: layer.macs for name, layer in layers.items()} == {name: counted[name] for name in layers}


def test_layers_that_do_not_run_are_omitted_and_tied_ones_are_marked() -> None:
    net = Tokens().eval()
    layers = trace(net, example(net)).layers
    assert isinstance(net.idle, nn.Linear)
    assert {layer.name: layer.tied for layer in layers} == {"embed": False, "shared": False, "head": True, "tied": True}


class Words(Net):
    """A network whose head and embedding share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return run(self.hidden(self.embed(x)).mean(1), self.head)


def test_a_layer_that_shares_the_weight_of_an_embedding_is_tied() -> None:
    layers = trace(Words().eval(), torch.tensor([[0, 3, 2]])).layers
    assert [(layer.name, layer.tied) for layer in layers] == [("hidden", False), ("head", True)]


def test_a_failing_forward_raises_an_error_of_one_line() -> None:
    net = copy.deepcopy(teacher(Plain))
    message = (
        r"^the network must accept the example, but its forward failed on a tensor of shape \(1, 4, 8, 8\): .*; "
        r"pass an example of the shape that the network is used with$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        trace(net, torch.randn(2, 4, 8, 8))
    assert "\n" not in str(caught.value)


class Failing(nn.Module):
    """A network that fails without a message, or with one of several lines."""

    def __init__(self, *message: str) -> None:
        super().__init__()
        self.message = message

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(*self.message)


@pytest.mark.parametrize(("message", "expected"), [((), "RuntimeError"), (("first\nsecond",), "first")])
def test_errors_of_the_forward_are_reported_in_one_line(message: tuple[str, ...], expected: str) -> None:
    with pytest.raises(
        ValueError, match=rf"\(1, 3\): {expected}; pass an example of the shape that the network is used with"
    ):
        trace(Failing(*message), torch.randn(1, 3))


def test_an_anatomy_is_cached_and_dropped_with_its_network() -> None:
    net = copy.deepcopy(teacher(Plain))
    first = trace(net, example(net))
    assert trace(net, torch.randn(1, 3, 8, 8)) is first
    reference = weakref.ref(net)
    del net
    example.cache_clear()
    gc.collect()
    assert reference() is None


def test_errors_for_unknown_names_list_the_nearest_names() -> None:
    net = teacher(Plain)
    anatomy = trace(net, example(net))
    assert anatomy.layer("second").name == anatomy.group("second").name == "second"
    with pytest.raises(ValueError, match="no layer is called 'secnd'; the nearest are: second"):
        anatomy.layer("secnd")
    with pytest.raises(ValueError, match="no group of channels is called 'head'; the nearest are: "):
        anatomy.group("head")


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the function is deprecated
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 5)))


class NotCopied(nn.Linear):
    """A layer that cannot be copied."""

    def __deepcopy__(self, _: object) -> object:
        raise TypeError("cannot pickle '_thread.lock' object")


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        script: nn.Module = torch.jit.script(nn.Linear(3, 5))
        return script


class Keyword(nn.Module):
    """A network that passes the input of its layer as a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> object:
        return self.inner(input=x)


@pytest.mark.parametrize(("make", "expected"), [
    (old_weight_norm, "'0' uses the old .*; torch.nn.utils.remove_weight_norm makes its weight a plain parameter"),
    (scripted, "a TorchScript network does not show its layers; pass the torch.nn.Module"),
    (lambda: nn.Linear(3, 5).half(), "32-bit floats, but 'weight' is float16; pass model.float()"),
    (lambda: NotCopied(3, 5), "must allow copy.deepcopy, but cannot pickle '_thread.lock' object"),
    (Keyword, "layer 'inner' gets its input as a keyword; call it as self.inner\\(x\\)"),
])  # fmt: skip
def test_errors_of_networks_that_cannot_be_compressed_name_the_remedy(
    make: Callable[[], nn.Module], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        trace(make(), torch.randn(1, 3))


class Pairs(nn.Linear):
    """A linear layer by its class that does not return a tensor."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class ReadsPairs(nn.Module):
    """A network with such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.odd, self.head = Pairs(3, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> object:
        return self.head(self.odd(x)[0])


def test_a_layer_that_returns_no_tensor_is_listed_as_another_module() -> None:
    anatomy = trace(ReadsPairs(), torch.randn(1, 3))
    assert [layer.name for layer in anatomy.layers] == ["head"]
    assert anatomy.others == (("odd", "Pairs"),)


class Twice(nn.Module):
    """A network that holds its layers in a list too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 16), nn.Linear(16, 5)
        self.all = nn.ModuleList([self.first, self.head])

    def forward(self, x: Tensor) -> object:
        return self.all[1](self.all[0](x).relu())


def test_a_module_under_two_names_is_replaced_under_both() -> None:
    net, x = Twice().eval(), torch.randn(4, 3)
    assert not any(layer.tied or layer.stays for layer in trace(net, x).layers)
    plan = Plan(
        steps=(Factorize((("head", 0.2),)), Quantize((("first", 4, 8), ("head", 8, 8)))), recovery=Distill(1.0, 0.0)
    )
    smaller = plan.apply(net, x)
    finished: Any = deployed(smaller, x)
    assert finished.all[0] is finished.first
    assert finished.all[1] is finished.head
    assert Macs(x)(finished) == 3 * 16 + 16 + 5
    torch.testing.assert_close(finished(x), smaller(x))
