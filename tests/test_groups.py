"""Groups of channels are correct when they are cut, and all other layers are refused by name."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import Magnitude, PruneRatios, SecondOrder, Taylor, trace
from spaces.network.anatomy import Member
from spaces.network.cutting import cut
from spaces.testing.axis_contract import step
from spaces.testing.networks import (
    NETWORKS,
    Dense,
    Grouped,
    Net,
    Normed,
    Padded,
    Plain,
    Residual,
    Separable,
    example,
    scrambled,
    teacher,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces import Anatomy
    from spaces.network.anatomy import Group


def each(count: int, start: int = 0) -> tuple[tuple[int, ...], ...]:
    """Return one position for each unit."""
    return tuple((position,) for position in range(start, start + count))


def members(net: nn.Module, anatomy: Anatomy, group: str) -> set[Member]:
    """Return the members of a group that are convolutions or linear layers."""
    names = {layer.name for layer in anatomy.layers}
    return {member for member in anatomy.group(group).members if member.layer in names}


def without(net: nn.Module, removed: list[tuple[Group, set[int]]]) -> nn.Module:
    """Return a copy whose consumers read zeros for the removed units."""
    masked = copy.deepcopy(net)
    for group, units in removed:
        for member in group.consumers:
            positions = [position for unit in units for position in member.positions[unit]]
            masked.get_submodule(member.layer).register_forward_pre_hook(_zeros(positions))
    return masked


def _zeros(positions: list[int]) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    def mask(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        values = inputs[0].clone().movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
        values[positions] = 0
        return values.movedim(0, -1 if isinstance(module, nn.Linear) else 1)

    return mask


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind is not Normed])
def test_cutting_equals_zeros_at_the_consumers(kind: type[Net], seed: int) -> None:
    net = teacher(kind)
    dice = random.Random(seed)  # noqa: S311 - a test, not a secret
    removed = [
        (group, set(dice.sample(range(group.units), dice.randrange(1, group.units))))
        for group in trace(net, example(net)).groups
    ]
    smaller = copy.deepcopy(net)
    cut(smaller, [(group, sorted(set(range(group.units)) - units)) for group, units in removed])
    expected = without(net, removed)(example(net))
    torch.testing.assert_close(smaller(example(net)), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, net(example(net)), atol=1e-3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_attributes_of_cut_modules_match_their_tensors(kind: type[Net]) -> None:
    net = teacher(kind)
    smaller = copy.deepcopy(net)
    cut(smaller, [(group, range(1, group.units)) for group in trace(net, example(net)).groups])
    assert str(smaller) != str(net)
    for module in smaller.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert len(module.running_mean) == len(module.weight) == module.num_features


def test_a_sum_ties_its_terms() -> None:
    net = teacher(Residual)
    anatomy = trace(net, example(net))
    assert [group.name for group in anatomy.groups] == ["stem", "block1.conv1", "block2.conv1", "block2.conv2"]
    assert members(net, anatomy, "block1.conv1") == {
        Member("block1.conv1", "out", 0, each(8)),
        Member("block1.conv2", "in", 0, each(8)),
    }
    assert members(net, anatomy, "stem") == {
        Member("stem", "out", 0, each(8)),
        Member("block1.conv1", "in", 0, each(8)),
        Member("block1.conv2", "out", 0, each(8)),
        Member("block2.conv1", "in", 0, each(8)),
        Member("block2.down.0", "in", 0, each(8)),
    }


def test_a_concatenation_shifts_positions() -> None:
    net = teacher(Dense)
    anatomy = trace(net, example(net))
    assert members(net, anatomy, "grow1") == {
        Member("grow1", "out", 0, each(4)),
        Member("grow2", "in", 0, each(4, 6)),
        Member("head", "in", 0, each(4, 6)),
    }
    assert members(net, anatomy, "grow2") == {Member("grow2", "out", 0, each(4)), Member("head", "in", 0, each(4, 10))}


def test_a_unit_of_a_flattened_map_has_all_pixels_of_its_channel() -> None:
    net = teacher(Plain)
    pixels = tuple(tuple(range(4 * channel, 4 * channel + 4)) for channel in range(12))
    assert Member("head", "in", 0, pixels) in members(net, trace(net, example(net)), "second")


def test_a_grouped_convolution_loses_one_channel_of_every_group() -> None:
    net = teacher(Grouped)
    anatomy = trace(net, example(net))
    pairs = tuple((channel, channel + 4) for channel in range(4))
    assert members(net, anatomy, "stem") == {Member("stem", "out", 0, pairs), Member("grouped", "in", 0, pairs)}
    pairs = tuple((channel, channel + 6) for channel in range(6))
    assert members(net, anatomy, "grouped") == {Member("grouped", "out", 0, pairs), Member("last", "in", 0, pairs)}


def test_a_depthwise_convolution_belongs_to_the_group_of_its_input() -> None:
    net = teacher(Separable)
    assert members(net, trace(net, example(net)), "stem") == {
        Member("stem", "out", 0, each(8)),
        Member("depthwise", "out", 0, each(8)),
        Member("pointwise", "in", 0, each(8)),
    }


def test_a_group_norm_keeps_its_groups_equal() -> None:
    net = teacher(Normed)
    anatomy = trace(net, example(net))
    assert anatomy.group("stem").units == 4
    assert Member("conv", "in", 0, tuple((c, c + 4) for c in range(4))) in members(net, anatomy, "stem")


def test_a_shortcut_padded_with_zeros_ties_the_channels_that_it_passes_on() -> None:
    net = teacher(Padded)
    anatomy = trace(net, example(net))
    assert [group.name for group in anatomy.groups] == ["stem", "conv1"]
    assert members(net, anatomy, "stem") == {
        Member("stem", "out", 0, each(8)),
        Member("conv1", "in", 0, each(8)),
        Member("conv2", "out", 0, each(8, 4)),
        Member("head", "in", 0, each(8, 4)),
    }
    assert members(net, anatomy, "conv1") == {Member("conv1", "out", 0, each(16)), Member("conv2", "in", 0, each(16))}
    assert refused(anatomy) == {}


class Custom(Net):
    """A network of any modules and with any forward function."""

    def __init__(self, way: Callable[[Custom, Tensor], object], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.way = way
        for name, module in modules.items():
            setattr(self, name, module)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> object:
        return self.way(self, x)


def chain(x: Tensor, *modules: nn.Module) -> Tensor:
    """Apply the modules one after the other, each with a ReLU."""
    for module in modules:
        x = F.relu(module(x))
    return x


def custom(way: Callable[[Custom, Tensor], object], **modules: nn.Module | nn.Parameter) -> tuple[Net, Anatomy]:
    """Return the network and its anatomy, after every importance criterion has pruned it by half."""
    net = scrambled(Custom(way, **modules))
    anatomy = trace(net, example(net))
    for importance in (Magnitude(), SecondOrder(), Taylor()):
        smaller = step(PruneRatios(importance=importance), net, 0.5).apply(net, example(net))
        output = smaller(example(net))
        assert output.shape == net(example(net)).shape
        assert output.isfinite().all()
    return net, anatomy


def refused(anatomy: Anatomy) -> dict[str, str]:
    """Return the reasons of refused layers, except those whose channels are outputs."""
    found = {refusal.layer: refusal.reason for refusal in anatomy.refusals}
    return {name: reason for name, reason in found.items() if not reason.endswith("they are outputs of the network")}


def conv(inputs: int, outputs: int, size: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size of the map."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)


@pytest.mark.parametrize("multiplier", [2, 4])
def test_a_channel_that_several_kernels_read_alone_is_pruned_with_all_of_them(multiplier: int) -> None:
    net, anatomy = custom(
        lambda m, x: m.last(chain(x, m.stem, m.wise)),
        stem=conv(3, 4), wise=conv(4, 4 * multiplier, 3, groups=4), last=conv(4 * multiplier, 5),
    )  # fmt: skip
    assert refused(anatomy) == {}
    assert anatomy.group("stem").units == 4
    smaller = step(PruneRatios(), net, 0.5).apply(net, example(net)).get_submodule("wise")
    assert isinstance(smaller, nn.Conv2d)
    assert (smaller.in_channels, smaller.groups, smaller.out_channels) == (2, 2, 2 * multiplier)


def test_kernels_that_read_channels_of_the_input_alone_are_pruned() -> None:
    net, anatomy = custom(lambda m, x: m.last(m.wise(x)), wise=conv(3, 12, 3, groups=3), last=conv(12, 5))
    assert refused(anatomy) == {}
    assert anatomy.group("wise").units == 4
    smaller = step(PruneRatios(), net, 0.5).apply(net, example(net)).get_submodule("wise")
    assert isinstance(smaller, nn.Conv2d)
    assert (smaller.in_channels, smaller.groups, smaller.out_channels) == (3, 3, 6)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_transposed_convolution_that_reads_every_channel_alone_is_pruned(multiplier: int) -> None:
    up = nn.ConvTranspose2d(4, 4 * multiplier, 2, stride=2, groups=4)
    net, anatomy = custom(
        lambda m, x: m.last(chain(x, m.stem, m.up)), stem=conv(3, 4), up=up, last=conv(4 * multiplier, 5)
    )
    assert [group.units for group in anatomy.groups] == [{1: 4, 2: 2}[multiplier]]
    smaller = step(PruneRatios(), net, 0.5).apply(net, example(net)).get_submodule("up")
    assert isinstance(smaller, nn.ConvTranspose2d)
    assert smaller.out_channels == 2 * multiplier
    assert smaller.groups == {1: 2, 2: 4}[multiplier]


def test_a_layer_norm_over_pixels_is_refused_by_name() -> None:
    _, anatomy = custom(
        lambda m, x: m.last(chain(x, m.stem, m.norm, m.next)),
        stem=conv(3, 4), norm=nn.LayerNorm((4, 8, 8)), next=conv(4, 6), last=conv(6, 5),
    )  # fmt: skip
    assert refused(anatomy) == {"stem": "its channels stay: 'norm' (LayerNorm) has a weight for every position"}
    assert [group.name for group in anatomy.groups] == ["next"]


def test_a_layer_that_is_called_twice_is_cut_on_both_sides() -> None:
    _, anatomy = custom(
        lambda m, x: m.last(chain(x, m.stem, m.again, m.again)), stem=conv(3, 8), again=conv(8, 8, 3), last=conv(8, 5)
    )
    assert refused(anatomy) == {}
    assert Member("again", "in", 0, each(8)) in anatomy.group("stem").members
    assert Member("again", "out", 0, each(8)) in anatomy.group("stem").members


def test_layers_that_share_a_weight_are_refused_by_name() -> None:
    one, two = conv(8, 8), conv(8, 8)
    two.weight = one.weight
    _, anatomy = custom(
        lambda m, x: m.last(chain(x, m.stem, m.one, m.two, m.next)),
        stem=conv(3, 8), one=one, two=two, next=conv(8, 8), last=conv(8, 5),
    )  # fmt: skip
    assert refused(anatomy)["one"] == "its channels stay: the weight of 'one' is shared with 'two.weight'"
    assert set(refused(anatomy)) == {"stem", "one", "two"}
    assert [group.name for group in anatomy.groups] == ["next"]


def test_transposed_convolutions_are_cut() -> None:
    net, anatomy = custom(
        lambda m, x: m.last(chain(x, m.stem, m.up, m.more)),
        stem=conv(3, 8), up=nn.ConvTranspose2d(8, 6, 2, 2), more=nn.ConvTranspose2d(6, 8, 2, 2, groups=2),
        last=conv(8, 5),
    )  # fmt: skip
    assert refused(anatomy) == {}
    assert {group.name for group in anatomy.groups} == {"stem", "up", "more"}
    more = step(PruneRatios(), net, 0.5).apply(net, example(net)).get_submodule("more")
    assert isinstance(more, nn.ConvTranspose2d)
    assert more.weight.shape[:2] == (more.in_channels, more.out_channels // 2)


def test_halves_of_a_split_are_removed_together() -> None:
    def way(net: Custom, x: Tensor) -> object:
        left, right = net.stem(x).chunk(2, 1)
        return net.last(F.relu(net.one(left)) + F.relu(net.two(right)))

    _, anatomy = custom(way, stem=conv(3, 8), one=conv(4, 6), two=conv(4, 6, 3), last=conv(6, 5))
    assert refused(anatomy) == {}
    assert [group.name for group in anatomy.groups] == ["stem", "one"]
    assert Member("stem", "out", 0, tuple((c, c + 4) for c in range(4))) in anatomy.group("stem").members


@pytest.mark.parametrize("reader", [nn.GroupNorm(2, 8), conv(8, 8, groups=2)])
def test_layers_that_fill_the_parts_of_a_grouped_layer_form_one_group(reader: nn.Module) -> None:
    _, anatomy = custom(
        lambda m, x: m.last(chain(torch.cat([m.one(x), m.two(x)], 1), m.reader, m.next)),
        one=conv(3, 4), two=conv(3, 4), reader=reader, next=conv(8, 6), last=conv(6, 5),
    )  # fmt: skip
    assert refused(anatomy) == {}
    assert {"one", "two"} <= set(anatomy.group("one").producers)


def test_a_bare_parameter_is_cut_with_its_channels() -> None:
    _, anatomy = custom(
        lambda m, x: m.last(F.relu(m.stem(x) * m.gain)),
        stem=conv(3, 8), gain=nn.Parameter(torch.rand(8, 1, 1)), last=conv(8, 5),
    )  # fmt: skip
    assert Member("gain", "parameter", 0, each(8)) in anatomy.group("stem").members


def test_the_reason_names_the_layer_that_ties_channels_and_not_a_bare_parameter() -> None:
    net = Custom(
        lambda m, x: m.last((m.stem(x) * m.gain + m.many(m.stem(x)).unflatten(1, (8, 2)).sum(2)).mean((2, 3))),
        stem=conv(3, 8), many=nn.Conv2d(8, 16, 3, padding=1, groups=4), last=nn.Linear(8, 5),
        gain=nn.Parameter(torch.ones(8, 1, 1)),
    ).eval()  # fmt: skip
    (reason,) = (refusal.reason for refusal in trace(net, example(net)).refusals if refusal.layer == "stem")
    assert (
        reason == "its channels stay: they can only be removed all at once: the groups of 'many' must keep equal sizes"
    )


def test_modules_that_cannot_be_cut_are_named() -> None:
    class Opaque(nn.Bilinear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x)

    _, anatomy = custom(
        lambda m, x: m.last(m.strange(F.relu(m.stem(x.mean((2, 3)))))),
        stem=nn.Linear(3, 8), strange=Opaque(8, 8, 8), last=nn.Linear(8, 5),
    )  # fmt: skip
    assert refused(anatomy) == {"stem": "its channels stay: 'strange' (Opaque) cannot be cut"}


def test_all_outputs_keep_their_shape() -> None:
    net = scrambled(Custom(
        lambda m, x: {"features": m.stem(x), "scores": [m.last(chain(x, m.stem, m.next))]},
        stem=conv(3, 8), next=conv(8, 8), last=conv(8, 5),
    ))  # fmt: skip
    anatomy = trace(net, example(net))
    assert [group.name for group in anatomy.groups] == ["next"]
    assert {refusal.layer: refusal.reason for refusal in anatomy.refusals} == dict.fromkeys(
        ("stem", "last"), "its channels stay: they are outputs of the network"
    )


def test_integer_parameters_change_no_groups() -> None:
    codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    net = scrambled(Custom(lambda m, x: m.last(m.stem(x)), stem=conv(3, 8), last=conv(8, 5), codes=codes))
    assert [group.name for group in trace(net, example(net)).groups] == ["stem"]


def test_detached_outputs_are_outputs() -> None:
    net = scrambled(Custom(lambda m, x: m.last(m.stem(x)).detach(), stem=conv(3, 8), last=conv(8, 5)))
    assert PruneRatios().acts_on(trace(net, example(net))) == {
        "stem": "2-8 of 8 units", "last": "no: its channels stay: they are outputs of the network"
    }  # fmt: skip


def test_a_network_that_cannot_be_followed_is_refused_layer_by_layer() -> None:
    class Fragile(Custom):
        def forward(self, x: Tensor) -> object:
            if torch._C._len_torch_dispatch_stack():
                raise RuntimeError("no modes,\nplease")
            return super().forward(x)

    net = scrambled(Fragile(lambda m, x: m.last(m.stem(x)), stem=conv(3, 8), last=conv(8, 5)))
    anatomy = trace(net, example(net))
    assert anatomy.groups == ()
    assert {refusal.layer: refusal.reason for refusal in anatomy.refusals} == dict.fromkeys(
        ("stem", "last"), "its channels could not be followed: no modes,"
    )


def test_a_group_whose_cut_fails_is_refused_and_the_others_are_kept() -> None:
    def way(net: Custom, x: Tensor) -> object:
        left, right = net.stem(x).split([3, 5], 1)
        return net.last(F.relu(net.next(F.relu(net.one(left) + net.two(right)))))

    _, anatomy = custom(way, stem=conv(3, 8), one=conv(3, 6), two=conv(5, 6), next=conv(6, 8), last=conv(8, 5))
    assert [group.name for group in anatomy.groups] == ["one", "next"]
    assert refused(anatomy)["stem"].startswith(
        "cutting it was tried, but the forward pass failed: split_with_sizes expects"
    )


def test_a_cut_that_changes_the_output_is_refused() -> None:
    net = scrambled(Custom(
        lambda m, x: m.last(F.relu(m.stem(x)) * m.stem.out_channels), stem=conv(3, 8), last=conv(8, 5)
    ))  # fmt: skip
    assert refused(trace(net, example(net)))["stem"].startswith("cutting it was tried, but the output is wrong by ")
