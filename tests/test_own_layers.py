"""Modules that apply a weight of their own are torch's layers, where they compute nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import trace, with_plain_layers
from spaces.network.own_layers import show_own_layers

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES, TOKENS = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 4)


class Own(nn.Module):
    """Computes something with a weight of its own."""

    def __init__(self, shape: tuple[int, ...], bias: int | None, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = None if bias is None else nn.Parameter(torch.zeros(bias))
        self.compute = compute
        self.act, self.drop = nn.Identity(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.compute(self, x))  # type: ignore[no-any-return]


def transposed_matrix(own: Any, x: Tensor) -> Tensor:
    return torch.addmm(own.bias, x.reshape(-1, x.shape[-1]), own.weight).view(*x.shape[:-1], -1)


REPLACED: dict[str, tuple[Own, Tensor, str]] = {
    "linear": (Own((6, 4), 6, lambda own, x: F.linear(x, own.weight, own.bias)), TOKENS, "Linear"),
    "matrix product": (Own((6, 4), None, lambda own, x: x @ own.weight.T), TOKENS, "Linear"),
    "transposed": (Own((4, 6), 6, transposed_matrix), TOKENS, "Linear"),
    "convolution": (Own((6, 4, 3, 3), 6, lambda own, x: F.conv2d(x, own.weight, own.bias)), IMAGES, "Conv2d"),
    "grouped": (
        Own((6, 2, 3, 3), None, lambda own, x: F.conv2d(x, own.weight, None, 2, padding=1, groups=2)), IMAGES, "Conv2d",
    ),
    "one dimension": (Own((6, 5, 3), 6, lambda own, x: F.conv1d(x, own.weight, own.bias, 1, "same")), TOKENS, "Conv1d"),
    "upwards": (
        Own((4, 3, 2, 2), 6, lambda own, x: F.conv_transpose2d(x, own.weight, own.bias, 2, groups=2)), IMAGES,
        "ConvTranspose2d",
    ),
}  # fmt: skip
KEPT: dict[str, tuple[Own, Tensor]] = {
    "activation": (Own((6, 4), 6, lambda own, x: F.linear(x, own.weight, own.bias).relu()), TOKENS),
    "bias elsewhere": (Own((6, 4, 1, 1), 4, lambda own, x: F.conv2d(x + own.bias[:, None, None], own.weight)), IMAGES),
    "dropout": (Own((6, 4), 6, lambda own, x: own.drop(F.linear(x, own.weight, own.bias))), TOKENS),
    "standardized": (Own((6, 4, 1, 1), None, lambda own, x: F.conv2d(x, own.weight - own.weight.mean())), IMAGES),
    "twice": (Own((4, 4, 1, 1), None, lambda own, x: F.conv2d(F.conv2d(x, own.weight), own.weight)), IMAGES),
    "table": (Own((5, 4), None, lambda own, x: x + own.weight), TOKENS),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_module_that_applies_its_weight_is_a_layer_with_the_same_weights(name: str) -> None:
    own, inputs, kind = REPLACED[name]
    net = nn.Sequential(nn.Identity(), own).eval()
    plain = with_plain_layers(net, inputs)
    assert [(layer.name, layer.kind) for layer in trace(plain, inputs).layers] == [("1", kind)]
    with torch.no_grad():
        assert (plain(inputs) - net(inputs)).abs().max() < 1e-5
    assert {key: tensor.numel() for key, tensor in plain.state_dict().items()} == {
        key: tensor.numel() for key, tensor in net.state_dict().items()
    }
    assert type(net[1]) is Own
    assert all(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize("name", KEPT)
def test_a_module_that_computes_more_is_kept(name: str) -> None:
    own, inputs = KEPT[name]
    net = nn.Sequential(own).eval()
    assert show_own_layers(net, inputs) is net


def test_a_module_whose_weight_is_not_trained_is_kept() -> None:
    own = Own((6, 4), None, lambda one, x: x @ one.weight.T)
    del own.weight
    own.register_buffer("weight", torch.randn(6, 4))
    net = nn.Sequential(own).eval()
    assert show_own_layers(net, TOKENS) is net


def test_a_module_whose_weight_is_shared_is_kept() -> None:
    own, inputs, _ = REPLACED["linear"]
    net = nn.Sequential(own, nn.Linear(6, 4)).eval()
    net[1].weight = nn.Parameter(torch.randn(4, 6))
    tied = nn.Sequential(own, Own((6, 4), None, lambda one, x: x @ one.weight)).eval()
    tied[1].weight = own.weight
    assert show_own_layers(tied, inputs) is tied
    assert type(show_own_layers(net, inputs).get_submodule("0")) is nn.Linear
