"""What is tried on a network before it is offered: cuts, and other modules in the place of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import trace
from spaces.dependency.checks import irreplaceable
from tests.nets import NETS, example, teacher
from tests.test_groups import Custom, conv

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.nets import Net

STOOD_IN = "another module was put in its place and "


def stuck(way: Callable[[Any, Tensor], object], shape: tuple[int, ...] = (3, 8, 8), **modules: nn.Module) -> Any:
    net, x = Custom(way, **modules).eval(), torch.randn(1, *shape)
    return irreplaceable(net, x, [layer.name for layer in trace(net, x).layers])


class Standardized(nn.Conv2d):
    """A kernel without mean, as some of timm's."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PaddedItself(nn.Conv2d):
    """Padding by the size of the input, as TensorFlow's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, x.shape[-1] % 2 + 1, 0, 1)))


@pytest.mark.parametrize("kind", NETS)
def test_plain_layers_can_be_replaced(kind: type[Net]) -> None:
    net = teacher(kind)
    assert irreplaceable(net, example(net)[:1], [layer.name for layer in trace(net, example(net)).layers]) == {}


def test_a_layer_of_its_own_kind_of_forward_is_named() -> None:
    found = stuck(lambda m, x: m.last(m.own(m.stem(x)).mean((2, 3))), stem=conv(3, 8), own=Standardized(8, 8, 3),
                  last=nn.Linear(8, 5))  # fmt: skip
    assert list(found) == ["own"]
    assert found["own"].startswith(f"{STOOD_IN}the output is off by")
    found = stuck(lambda m, x: m.last(m.own(m.stem(x)).flatten(1)), stem=conv(3, 8), own=PaddedItself(8, 8, 3),
                  last=nn.Linear(8 * 49, 5))  # fmt: skip
    assert list(found) == ["own"]
    assert found["own"].startswith(f"{STOOD_IN}the output became")


def test_a_layer_of_its_own_kind_is_named_where_the_network_hardly_hears_it() -> None:
    found = stuck(lambda m, x: m.last((m.stem(x) + 1e-6 * m.own(m.stem(x))).mean((2, 3))), stem=conv(3, 8),
                  own=Standardized(8, 8, 3, padding=1), last=nn.Linear(8, 5))  # fmt: skip
    assert list(found) == ["own"]


def test_a_layer_whose_weight_is_read_from_outside_is_named() -> None:
    found = stuck(
        lambda m, x: m.last(m.mid(m.first(x)) + F.linear(m.first(x).tanh(), m.mid.weight)),
        (6,), first=nn.Linear(6, 8), mid=nn.Linear(8, 8), last=nn.Linear(8, 5),
    )  # fmt: skip
    assert found == {"mid": f"{STOOD_IN}the forward failed: '_StandIn' object has no attribute 'weight'"}


def test_a_layer_whose_answer_a_hook_changes_is_named() -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).eval(), torch.randn(1, 6)
    net[0].register_forward_hook(lambda _, __, output: 2 * output)
    assert list(irreplaceable(net, x, ["0", "1"])) == ["0"]


def test_a_weight_that_is_computed_says_how_to_make_it_plain() -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))), torch.randn(1, 6)
    (reason,) = irreplaceable(net.eval(), x, ["0", "1"]).values()
    assert reason.startswith("its weight is computed before every forward; torch.nn.utils.parametrize.remove_param")
    nn.utils.parametrize.remove_parametrizations(net[1], "weight")
    assert irreplaceable(net, x, ["0", "1"]) == {}


def test_the_layers_of_torchs_transformer_are_tried_outside_of_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = Custom(lambda m, x: m.last(m.layer(x).mean(1)), layer=layer, last=nn.Linear(8, 5)).eval()
    groups = trace(net, torch.randn(2, 4, 8)).groups
    assert [(group.name, group.units) for group in groups] == [("layer.linear1", 16)]
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_network_that_draws_numbers_in_evaluation_says_so() -> None:
    net = Custom(lambda m, x: m.last(F.dropout(m.first(x))), first=nn.Linear(6, 8), last=nn.Linear(8, 5)).eval()
    anatomy = trace(net, torch.randn(2, 6))
    reasons = {refusal.layer: refusal.reason for refusal in anatomy.refusals}
    assert anatomy.groups == ()
    assert reasons["first"].endswith("each time in evaluation, as with F.dropout without training=self.training")
    assert [layer.stays for layer in anatomy.layers] == ["", ""]
