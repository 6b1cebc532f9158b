"""Trials on a network before an axis acts on it: cutting groups and replacing layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import trace
from spaces.dependency.replacements import irreplaceable_layers
from spaces.testing.networks import NETWORKS, example, teacher
from tests.test_groups import Custom, conv

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces.testing.networks import Net

TRIED = "another module was put in its place, but "


def reasons_of(way: Callable[[Any, Tensor], object], shape: tuple[int, ...] = (3, 8, 8), **modules: nn.Module) -> Any:
    net, x = Custom(way, **modules).eval(), torch.randn(1, *shape)
    return irreplaceable_layers(net, x, [layer.name for layer in trace(net, x).layers])


class Standardized(nn.Conv2d):
    """A convolution that subtracts the mean of its kernel, as some of timm's."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PadsByInputSize(nn.Conv2d):
    """A convolution whose padding depends on the size of its input, as TensorFlow's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, x.shape[-1] % 2 + 1, 0, 1)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_plain_layers_can_be_replaced(kind: type[Net]) -> None:
    net = teacher(kind)
    assert irreplaceable_layers(net, example(net)[:1], [layer.name for layer in trace(net, example(net)).layers]) == {}


def test_a_layer_with_a_custom_forward_is_irreplaceable() -> None:
    found = reasons_of(lambda m, x: m.last(m.own(m.stem(x)).mean((2, 3))), stem=conv(3, 8), own=Standardized(8, 8, 3),
                  last=nn.Linear(8, 5))  # fmt: skip
    assert list(found) == ["own"]
    assert found["own"].startswith(f"{TRIED}the output is wrong by")
    found = reasons_of(lambda m, x: m.last(m.own(m.stem(x)).flatten(1)), stem=conv(3, 8), own=PadsByInputSize(8, 8, 3),
                  last=nn.Linear(8 * 49, 5))  # fmt: skip
    assert list(found) == ["own"]
    assert found["own"].startswith(f"{TRIED}the output has the shape")


def test_a_layer_that_cannot_run_without_its_own_padding_is_irreplaceable() -> None:
    found = reasons_of(lambda m, x: m.last(m.own(m.stem(x)).flatten(1)), (3, 3, 3), stem=conv(3, 8),
                  own=PadsByInputSize(8, 8, 4), last=nn.Linear(16, 5))  # fmt: skip
    assert list(found) == ["own"]
    assert found["own"].startswith(f"{TRIED}it fails: Calculated padded input size per channel")


def test_a_layer_with_a_custom_forward_is_found_where_it_hardly_changes_the_outputs() -> None:
    found = reasons_of(lambda m, x: m.last((m.stem(x) + 1e-6 * m.own(m.stem(x))).mean((2, 3))), stem=conv(3, 8),
                  own=Standardized(8, 8, 3, padding=1), last=nn.Linear(8, 5))  # fmt: skip
    assert list(found) == ["own"]


def test_a_layer_whose_weight_is_read_from_outside_is_irreplaceable() -> None:
    found = reasons_of(
        lambda m, x: m.last(m.mid(m.first(x)) + F.linear(m.first(x).tanh(), m.mid.weight)),
        (6,), first=nn.Linear(6, 8), mid=nn.Linear(8, 8), last=nn.Linear(8, 5),
    )  # fmt: skip
    assert found == {"mid": f"{TRIED}the forward reads its weight"}


def test_refusals_name_the_weight_that_the_forward_reads() -> None:
    def way(net: Custom, x: Tensor) -> object:
        z = F.relu(net.second(F.relu(net.first(x))))
        back = F.relu(F.conv_transpose2d(z, net.second.weight, padding=1))
        return F.conv_transpose2d(back, net.first.weight, padding=1), net.last(z.mean((2, 3)))

    net = Custom(way, first=conv(3, 8), second=conv(8, 12), last=nn.Linear(12, 5)).eval()
    reasons = {refusal.layer: refusal.reason for refusal in trace(net, torch.randn(2, 3, 6, 6)).refusals}
    assert reasons["first"].startswith("cutting it was tried, but the output is wrong by ")
    assert reasons["first"].endswith(": the forward reads 'first.weight' outside of its layer")
    mixing = "its channels stay: the operation convolution mixes them with the parameter 'second.weight'"
    assert reasons["second"] == mixing
    assert reasons["last"] == "its channels stay: they are outputs of the network"


def test_a_layer_whose_output_is_changed_by_a_hook_is_irreplaceable() -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).eval(), torch.randn(1, 6)
    net[0].register_forward_hook(lambda _, __, output: 2 * output)
    assert list(irreplaceable_layers(net, x, ["0", "1"])) == ["0"]


def test_the_reason_for_a_computed_weight_names_the_remedy() -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))), torch.randn(1, 6)
    (reason,) = irreplaceable_layers(net.eval(), x, ["0", "1"]).values()
    assert reason.startswith("its weight is computed in every forward pass; torch.nn.utils.parametrize.remove_param")
    nn.utils.parametrize.remove_parametrizations(net[1], "weight")
    assert irreplaceable_layers(net, x, ["0", "1"]) == {}


def test_cuts_of_torchs_transformer_layers_are_tried_without_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = Custom(lambda m, x: m.last(m.layer(x).mean(1)), layer=layer, last=nn.Linear(8, 5)).eval()
    groups = trace(net, torch.randn(2, 4, 8)).groups
    assert [(group.name, group.units) for group in groups] == [("layer.linear1", 16)]
    assert torch.backends.mha.get_fastpath_enabled()


def test_random_outputs_in_evaluation_mode_refuse_all_groups() -> None:
    net = Custom(lambda m, x: m.last(F.dropout(m.first(x))), first=nn.Linear(6, 8), last=nn.Linear(8, 5)).eval()
    anatomy = trace(net, torch.randn(2, 6))
    reasons = {refusal.layer: refusal.reason for refusal in anatomy.refusals}
    assert anatomy.groups == ()
    assert reasons["first"].endswith(
        "differ from call to call in evaluation mode, as with F.dropout without training=self.training"
    )
    assert [layer.stays for layer in anatomy.layers] == ["", ""]
