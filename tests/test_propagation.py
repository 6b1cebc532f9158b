"""Channels are followed through operations, one in each test; the resulting groups are cut and compared."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import trace
from spaces.dependency.attention_scale import FixedScale
from spaces.dependency.norm_rules import WithoutStatistics
from spaces.network.anatomy import Member
from spaces.network.cutting import cut
from spaces.network.tensors import tensors
from spaces.testing.networks import Net, scrambled
from tests.test_groups import Custom, conv, each, refused, without

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces import Anatomy


def followed(
    way: Callable[[Custom, Tensor], object], shape: tuple[int, ...] = (3, 8, 8), /, **modules: nn.Module | nn.Parameter
) -> Anatomy:
    """Return the anatomy, after a check that cutting random units of all groups equals masking them."""
    net = scrambled(Custom(way, **modules))
    x = torch.randn(4, *shape)
    anatomy = trace(net, x)
    for seed in range(2):
        _compare(net, x, anatomy, random.Random(seed))  # noqa: S311 - a test, not a secret
    return anatomy


def _compare(net: Net, x: Tensor, anatomy: Anatomy, dice: random.Random) -> None:
    removed = [(group, set(dice.sample(range(group.units), group.units // 2))) for group in anatomy.groups]
    masked = without(net, removed)
    for group, units in removed:  # no weight reads queries and keys
        for member in group.members:
            module = masked.get_submodule(member.layer) if member.side == "out" else None
            if isinstance(module, nn.Linear):
                rows = [position for unit in units for position in member.positions[unit]]
                module.weight.data[rows] = module.bias.data[rows] = 0
    smaller = copy.deepcopy(net)
    cut(smaller, [(group, sorted(set(range(group.units)) - units)) for group, units in removed])
    with torch.no_grad(), FixedScale(), WithoutStatistics():
        for ours, theirs in zip(tensors(smaller(x)), tensors(masked(x)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def at(anatomy: Anatomy, group: str, layer: str, side: str = "out") -> tuple[tuple[int, ...], ...]:
    """Return the positions of the units of a group in a layer."""
    return next(m.positions for m in anatomy.group(group).members if (m.layer, m.side) == (layer, side))


def names(anatomy: Anatomy) -> list[str]:
    """Return the names of the groups."""
    return [group.name for group in anatomy.groups]


def pooled(x: Tensor) -> Tensor:
    """Return the mean over the pixels."""
    return x.mean((2, 3))


def ends(channels: int = 8, read: int = 8) -> dict[str, nn.Module]:
    """Return the first and the last layer of most networks here."""
    return {"stem": conv(3, channels, 3), "last": nn.Linear(read, 5)}


def through(act: Callable[[Tensor], Tensor], channels: int = 8, read: int = 8) -> Anatomy:
    """Follow a network with one operation between a convolution and a linear layer."""
    return followed(lambda m, x: m.last(pooled(act(F.relu(m.stem(x))))), **ends(channels, read))


def test_a_residual_sum_ties_its_terms() -> None:
    anatomy = followed(lambda m, x: m.last(pooled((y := m.stem(x)) + m.conv(F.relu(y)))), conv=conv(8, 8), **ends())
    assert anatomy.group("stem").producers == ("stem", "conv")


def test_a_concatenation_shifts_positions() -> None:
    anatomy = followed(lambda m, x: m.last(pooled(torch.cat([m.stem(x), m.two(x)], 1))), two=conv(3, 4), **ends(8, 12))
    assert at(anatomy, "two", "last", "in") == each(4, 8)


def test_a_unit_of_a_flattened_map_has_all_pixels_of_its_channel() -> None:
    anatomy = followed(lambda m, x: m.last(m.stem(x).flatten(1)), **ends(8, 512))
    assert at(anatomy, "stem", "last", "in")[1] == tuple(range(64, 128))


@pytest.mark.parametrize("halve", [
    lambda x: x.chunk(2, 1),
    lambda x: x.split(x.shape[1] // 2, 1),
    lambda x: x.split([x.shape[1] // 2] * 2, 1),
    lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
])  # fmt: skip
def test_equal_parts_are_removed_together(halve: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    def way(net: Custom, x: Tensor) -> object:
        left, right = halve(net.stem(x))
        return net.last(torch.cat([pooled(left), pooled(right).tanh()], 1))

    anatomy = followed(way, **ends())
    assert at(anatomy, "stem", "stem") == at(anatomy, "stem", "last", "in") == tuple((c, c + 4) for c in range(4))


def test_unequal_parts_are_refused_and_the_rest_is_kept() -> None:
    def way(net: Custom, x: Tensor) -> object:
        left, right = net.stem(x).split([3, 5], 1)
        return net.last(pooled(net.one(left) + net.two(right)))

    anatomy = followed(way, one=conv(3, 8), two=conv(5, 8), **ends())
    assert names(anatomy) == ["one"]
    assert refused(anatomy)["stem"].startswith("cutting it was tried, but the forward pass failed: ")


def test_a_slice_that_is_not_one_of_equal_parts_is_refused() -> None:
    anatomy = followed(lambda m, x: m.last(m.mid(pooled(m.stem(x)[:, :5]))), mid=nn.Linear(5, 8), **ends())
    assert names(anatomy) == ["mid"]
    assert "stem" in refused(anatomy)


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_shuffle_keeps_its_parts_equal(groups: int, *, by_hand: bool) -> None:
    def shuffle(x: Tensor) -> Tensor:
        if by_hand:
            batch, channels, *space = x.shape
            return x.view(batch, groups, channels // groups, *space).transpose(1, 2).reshape(batch, channels, *space)
        return F.channel_shuffle(x, groups)

    anatomy = through(shuffle, 6 * groups, 6 * groups)
    assert at(anatomy, "stem", "stem") == tuple(tuple(c + 6 * part for part in range(groups)) for c in range(6))
    assert at(anatomy, "stem", "last", "in") == tuple(tuple(range(groups * c, groups * c + groups)) for c in range(6))


def test_squeeze_and_excitation_is_tied_to_the_channels_that_it_scales() -> None:
    def way(net: Custom, x: Tensor) -> object:
        x = F.relu(net.stem(x))
        return net.last(pooled(x * net.excite(F.relu(net.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()))

    anatomy = followed(way, squeeze=conv(8, 4), excite=conv(4, 8), **ends())
    assert anatomy.group("stem").producers == ("stem", "excite")
    assert names(anatomy) == ["stem", "squeeze"]


def test_a_shortcut_padded_with_zeros_ties_the_channels_that_it_passes_on() -> None:
    def way(net: Custom, x: Tensor) -> object:
        x = F.relu(net.stem(x))
        return net.last(pooled(F.relu(net.two(F.relu(net.one(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))))

    anatomy = followed(way, one=nn.Conv2d(8, 6, 3, 2, 1), two=conv(6, 12), **ends(8, 12))
    assert names(anatomy) == ["stem", "one"]
    assert at(anatomy, "stem", "two") == each(8, 2)


def test_tokens_a_class_token_and_position_embeddings_form_one_group() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([net.first.expand(len(x), -1, -1), tokens], 1) + net.where
        return net.last(net.norm(tokens)[:, 0])

    anatomy = followed(
        way, first=nn.Parameter(torch.randn(1, 1, 8)), where=nn.Parameter(torch.randn(1, 65, 8)), norm=nn.LayerNorm(8),
        **ends(),
    )  # fmt: skip
    members = anatomy.group("stem").members
    assert {Member("first", "parameter", 2, each(8)), Member("where", "parameter", 2, each(8))} <= set(members)
    assert Member("norm", "out", 0, each(8)) in members


def test_a_layer_scale_is_cut_with_its_channels() -> None:
    anatomy = followed(
        lambda m, x: m.last(pooled((y := m.stem(x)) + m.scale * m.conv(y))),
        scale=nn.Parameter(torch.rand(8, 1, 1)), conv=conv(8, 8), **ends(),
    )  # fmt: skip
    assert Member("scale", "parameter", 0, each(8)) in anatomy.group("stem").members


def test_a_norm_that_permutes_its_input_is_followed() -> None:
    class Last(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    anatomy = followed(lambda m, x: m.last(pooled(m.norm(m.stem(x)))), norm=Last(8), **ends())
    assert at(anatomy, "stem", "norm") == each(8)


def by_hand(x: Tensor) -> Tensor:
    """Shuffle pixels, by a factor of two, with operations that only move data."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, channels // 4, 2 * height, 2 * width)


@pytest.mark.parametrize("shuffle", [lambda x: F.pixel_shuffle(x, 2), by_hand])
def test_pixels_of_one_channel_are_removed_together(shuffle: Callable[[Tensor], Tensor]) -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.conv(shuffle(m.stem(x))))), conv=conv(4, 8), **ends(16))
    assert at(anatomy, "stem", "stem") == tuple(tuple(range(4 * c, 4 * c + 4)) for c in range(4))


def attend(net: Custom, x: Tensor, *, fused: bool) -> object:
    """Compute attention with matrix products; the scale is a constant."""
    tokens = net.stem(x).flatten(2).transpose(1, 2)
    if fused:
        queries, keys, values = net.qkv(tokens).chunk(3, -1)
    else:
        queries, keys, values = net.q(tokens), net.k(tokens), net.v(tokens)
    queries, keys, values = (y.reshape(len(x), 64, 2, -1).transpose(1, 2) for y in (queries, keys, values))
    weights = (torch.matmul(queries, keys.transpose(-2, -1)) * 0.5).softmax(-1)
    mixed = torch.matmul(weights, values).transpose(1, 2).reshape(len(x), 64, -1)
    return net.last(net.out(mixed).mean(1))


def test_heads_keep_equal_sizes_and_queries_and_keys_form_one_group() -> None:
    linear = {name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    anatomy = followed(lambda m, x: attend(m, x, fused=False), **linear, **ends())
    assert names(anatomy) == ["stem", "q", "v", "out"]
    assert at(anatomy, "q", "q") == at(anatomy, "q", "k") == tuple((c, c + 4) for c in range(4))
    assert at(anatomy, "v", "out", "in") == tuple((c, c + 4) for c in range(4))


def test_a_fused_layer_loses_the_same_number_of_queries_keys_and_values() -> None:
    anatomy = followed(lambda m, x: attend(m, x, fused=True), qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), **ends())
    assert at(anatomy, "qkv", "qkv") == tuple(tuple(range(c, 24, 4)) for c in range(4))


def test_the_attention_of_torch_is_followed() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens).reshape(len(x), 64, 2, -1).transpose(1, 2) for layer in (net.q, net.k, net.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return net.last(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    anatomy = followed(way, **{name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")}, **ends())
    assert names(anatomy) == ["stem", "q", "v", "out"]
    assert at(anatomy, "v", "out", "in") == tuple((c, c + 4) for c in range(4))


def test_queries_and_keys_are_cut_together_though_the_scale_depends_on_their_number() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        return net.last(F.scaled_dot_product_attention(net.q(tokens), net.k(tokens), net.v(tokens)).mean(1))

    anatomy = followed(way, **{name: nn.Linear(8, 8) for name in ("q", "k", "v")}, **ends())
    assert names(anatomy) == ["stem", "q", "v"]
    assert at(anatomy, "q", "k") == at(anatomy, "q", "q")


def test_cosine_attention_with_a_scale_for_each_head_is_followed() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens).reshape(len(x), 64, 2, -1).transpose(1, 2) for layer in (net.q, net.k, net.v))
        q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
        mixed = (q @ k.transpose(-2, -1) * net.scale.exp()).softmax(-1) @ v
        return net.last(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    layers = {name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    anatomy = followed(way, **layers, scale=nn.Parameter(torch.randn(2, 1, 1)), **ends())
    assert names(anatomy) == ["stem", "q", "v", "out"]


def test_constant_padding_of_a_map_does_not_fix_its_channels() -> None:
    def way(net: Custom, x: Tensor) -> object:
        return net.last(net.mid(F.pad(net.stem(x), (0, 1, 1, 0)).flatten(2).transpose(1, 2)).mean(1))

    anatomy = followed(way, mid=nn.Linear(8, 8), **ends())
    assert names(anatomy) == ["stem", "mid"]


def test_multi_head_attention_is_named_as_the_reason() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        return net.last(net.mid(net.mha(tokens, tokens, tokens)[0]).mean(1))

    anatomy = followed(way, mha=nn.MultiheadAttention(8, 2, batch_first=True), mid=nn.Linear(8, 8), **ends())
    assert refused(anatomy) == {"stem": "its channels stay: 'mha' (MultiheadAttention) cannot be cut"}
    assert names(anatomy) == ["mid"]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_are_named_as_the_reason(kind: type[nn.GRU | nn.LSTM]) -> None:
    anatomy = followed(
        lambda m, x: m.last(m.mid(m.cell(m.stem(x))[0].mean(1))), (6, 3),
        stem=nn.Linear(3, 8), cell=kind(8, 8, batch_first=True), mid=nn.Linear(8, 8), last=nn.Linear(8, 5),
    )  # fmt: skip
    assert refused(anatomy) == {"stem": f"its channels stay: 'cell' ({kind.__name__}) cannot be cut"}
    assert names(anatomy) == ["mid"]


def test_an_embedding_is_cut_with_the_channels_that_are_added_to_it() -> None:
    def way(net: Custom, x: Tensor) -> object:
        words = net.words((x[:, 0] > 0).long())
        return net.last((words + net.two(F.relu(net.one(words)))).mean(1))

    anatomy = followed(
        way, (1, 6), words=nn.Embedding(2, 8), one=nn.Linear(8, 8), two=nn.Linear(8, 8), last=nn.Linear(8, 5)
    )
    assert not refused(anatomy)
    assert at(anatomy, "two", "words") == at(anatomy, "two", "last", "in") == each(8)


def test_a_bare_weight_is_named_as_the_reason_for_channels_that_it_reads() -> None:
    anatomy = followed(
        lambda m, x: m.last(F.linear(pooled(m.stem(x)), m.bare)), bare=nn.Parameter(torch.randn(8, 8)), **ends()
    )
    assert "with the parameter 'bare'" in refused(anatomy)["stem"]


def test_the_weight_of_another_layer_is_named_as_the_reason_for_channels_that_it_reads() -> None:
    anatomy = followed(lambda m, x: m.last(F.linear(pooled(m.stem(x)), m.idle.weight)), idle=nn.Linear(8, 8), **ends())
    assert refused(anatomy)["stem"].endswith("they are combined with the parameter 'idle.weight' outside of its layer")


def test_a_layer_with_a_computed_weight_is_named_as_the_reason() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    anatomy = followed(lambda m, x: m.last(pooled(m.mid(m.normed(m.stem(x))))), normed=normed, mid=conv(8, 8), **ends())
    assert refused(anatomy)["stem"] == "its channels stay: 'normed' (ParametrizedConv2d) cannot be cut"
    assert names(anatomy) == ["mid"]


@pytest.mark.parametrize("act", [
    lambda x: x * 2 + 1,
    lambda x: x * torch.tensor(0.5),
    lambda x: x * torch.linspace(0, 1, 8),  # along a row
    lambda x: x + torch.ones(1, 1, 8, 8),
    lambda x: x * x.new_ones(len(x), 1, 1, 1),
    lambda x: x + torch.zeros_like(x),
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: x.masked_fill(x < 0, 0.0),
    lambda x: x.clone().relu_().add_(1).mul_(x),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.hardswish(F.hardsigmoid(F.leaky_relu(x, inplace=True), inplace=True), inplace=True),
    lambda x: F.elu(F.gelu(F.silu(x)) + F.mish(x)) * F.softplus(x),
    lambda x: F.max_pool2d(F.avg_pool2d(x, 2), 3, 1, 1),
    lambda x: F.adaptive_avg_pool2d(x, 3),
    lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    lambda x: x[:, :, 1:-1, ::2].flip(-1).roll(1, 2),
    lambda x: x.permute(0, 2, 3, 1).contiguous().unflatten(1, (2, 4)).flatten(1, 2).permute(0, 3, 1, 2),
    lambda x: torch.stack([x, x.tanh()]).sum(0),
    lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1).amax(2),
    lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    lambda x: x.view(len(x), -1, 64).softmax(-1).view_as(x),
    lambda x: x.index_select(2, torch.tensor([0, 2])),
    lambda x: x + torch.ones(1, 1, 1, 1).expand_as(x),
])  # fmt: skip
def test_operations_that_treat_all_channels_equally_tie_none(act: Callable[[Tensor], Tensor]) -> None:
    anatomy = through(act)
    assert at(anatomy, "stem", "stem") == at(anatomy, "stem", "last", "in") == each(8)


@pytest.mark.parametrize(("act", "why"), [
    (lambda x: x + torch.ones(1, 8, 1, 1), "the operation add mixes them with a constant or an input of the network"),
    (lambda x: x.softmax(1), "the operation _softmax mixes them"),
    (lambda x: torch.fft.fft(x, dim=1).real, "the operation _fft_r2c mixes them"),
    (lambda x: x.mean(1, keepdim=True).expand_as(x),
     "they can only be removed all at once: the operation mean mixes them"),
    (lambda x: x * torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).mean(1, keepdim=True),
     "they can only be removed all at once: the operation amax mixes them"),
    (lambda x: x.cumsum(1), "the operation cumsum mixes them"),
    (lambda x: F.local_response_norm(x, 3), "the operation avg_pool3d mixes them"),
    (lambda x: torch.einsum("bchw,cd->bdhw", x, torch.eye(8)), "the operation bmm mixes them with a constant or an"),
])  # fmt: skip
def test_operations_that_mix_channels_are_named(act: Callable[[Tensor], Tensor], why: str) -> None:
    assert refused(through(act))["stem"].startswith(f"its channels stay: {why}")


def test_features_that_are_normalized_to_length_one_are_cut() -> None:
    layers = {"first": nn.Linear(6, 8), "last": nn.Linear(8, 5)}
    anatomy = followed(lambda m, x: m.last(F.normalize(m.first(x), dim=1)), (6,), **layers)
    assert at(anatomy, "first", "last", "in") == each(8)


def test_a_map_that_is_broadcast_over_channels_does_not_tie_them() -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.stem(x) * m.look(x).sigmoid())), look=conv(3, 1), **ends())
    assert names(anatomy) == ["stem"]
    assert refused(anatomy)["look"] == "its channels stay: they are broadcast over other channels"


def test_the_halves_of_a_gated_linear_unit_are_removed_together() -> None:
    anatomy = through(lambda x: F.glu(x, 1), 16)
    assert at(anatomy, "stem", "stem") == tuple((c, c + 8) for c in range(8))


def test_a_buffer_is_cut_with_the_channels_that_are_combined_with_it() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.randn(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.shift  # type: ignore[operator]

    anatomy = followed(lambda m, x: m.last(pooled(m.shift(m.stem(x)))), shift=Shifted(), **ends())
    assert Member("shift.shift", "parameter", 0, each(8)) in anatomy.group("stem").members


@pytest.mark.parametrize("slopes", [1, 8])
def test_slopes_are_cut_where_every_channel_has_one(slopes: int) -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.act(m.stem(x)))), act=nn.PReLU(slopes), **ends())
    assert ("act" in anatomy.group("stem").producers) == (slopes == 8)


def test_a_group_norm_keeps_its_groups_equal() -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.norm(m.stem(x)))), norm=nn.GroupNorm(4, 8), **ends())
    assert at(anatomy, "stem", "stem") == ((0, 2, 4, 6), (1, 3, 5, 7))


@pytest.mark.parametrize("space", [1, 3])
def test_other_numbers_of_spatial_dimensions_are_followed(space: int) -> None:
    kind, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[space]
    anatomy = followed(
        lambda m, x: m.last(F.relu(m.two(F.relu(m.norm(m.one(x))))).flatten(2).mean(2)), (3, *[6] * space),
        one=kind(3, 8, 3), norm=norm(8), two=kind(8, 6, 3, groups=2), last=nn.Linear(6, 5),
    )  # fmt: skip
    assert names(anatomy) == ["one", "two"]
    assert anatomy.group("one").units == 4


def test_transposed_convolutions_are_followed() -> None:
    anatomy = followed(
        lambda m, x: m.last(pooled(m.more(F.relu(m.up(m.stem(x)))))),
        up=nn.ConvTranspose2d(8, 6, 2, 2), more=nn.ConvTranspose2d(6, 8, 2, 2, groups=2), **ends(),
    )  # fmt: skip
    assert set(names(anatomy)) == {"stem", "up", "more"}


@pytest.mark.parametrize("wrap", [lambda a, b: (a, b), lambda a, b: {"scores": a, "features": [b]}])
def test_every_tensor_of_the_output_keeps_its_channels(wrap: Callable[[Tensor, Tensor], object]) -> None:
    anatomy = followed(lambda m, x: wrap(m.last(pooled(m.mid(y := m.stem(x)))), y), mid=conv(8, 8), **ends())
    assert names(anatomy) == ["mid"]


def test_a_head_that_runs_only_in_training_is_cut_with_its_channels() -> None:
    def way(net: Custom, x: Tensor) -> object:
        x = F.relu(net.stem(x))
        scores = net.last(pooled(x))
        return (scores, net.helper(F.relu(net.aside(pooled(x))))) if net.training else scores

    anatomy = followed(way, aside=nn.Linear(8, 6), helper=nn.Linear(6, 5), **ends())
    assert names(anatomy) == ["stem"]
    assert at(anatomy, "stem", "aside", "in") == each(8)


def test_an_example_of_the_wrong_shape_raises_an_error_of_one_line() -> None:
    net = scrambled(Custom(lambda m, x: m.last(m.stem(x).flatten(1)), **ends(8, 512)))
    with pytest.raises(ValueError, match=r"^the network must accept the example.*\(1, 3, 9, 9\): [^\n]*$"):
        trace(net, torch.randn(1, 3, 9, 9))
