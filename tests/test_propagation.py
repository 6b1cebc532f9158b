"""Channels are followed through what networks do with them, one thing a test; the groups are cut and compared."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces import trace
from spaces.dependency.checks import WithoutStatistics
from spaces.network.anatomy import Member
from spaces.network.cutting import cut
from spaces.network.tensors import tensors
from tests.nets import Net, scrambled
from tests.test_groups import Custom, conv, each, refused, without

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces import Anatomy


def followed(
    way: Callable[[Custom, Tensor], object], shape: tuple[int, ...] = (3, 8, 8), /, **modules: nn.Module | nn.Parameter
) -> Anatomy:
    """Return the anatomy; on the way, random units of all groups were cut, which was the same as masking them."""
    net = scrambled(Custom(way, **modules))
    x = torch.randn(4, *shape)
    anatomy = trace(net, x)
    for seed in range(2):
        _compare(net, x, anatomy, random.Random(seed))  # noqa: S311 - a test, not a secret
    return anatomy


def _compare(net: Net, x: Tensor, anatomy: Anatomy, dice: random.Random) -> None:
    gone = [(group, set(dice.sample(range(group.units), group.units // 2))) for group in anatomy.groups]
    masked = without(net, gone)
    for group, units in gone:  # queries and keys are read by no weight
        for member in group.members:
            module = masked.get_submodule(member.layer) if member.side == "out" else None
            if isinstance(module, nn.Linear):
                rows = [position for unit in units for position in member.positions[unit]]
                module.weight.data[rows] = module.bias.data[rows] = 0
    smaller = copy.deepcopy(net)
    cut(smaller, [(group, sorted(set(range(group.units)) - units)) for group, units in gone])
    with torch.no_grad(), WithoutStatistics():  # type: ignore[no-untyped-call]
        for ours, theirs in zip(tensors(smaller(x)), tensors(masked(x)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def at(anatomy: Anatomy, group: str, layer: str, side: str = "out") -> tuple[tuple[int, ...], ...]:
    """Return where the units of a group lie in a layer."""
    return next(m.positions for m in anatomy.group(group).members if (m.layer, m.side) == (layer, side))


def names(anatomy: Anatomy) -> list[str]:
    """Return the names of the groups."""
    return [group.name for group in anatomy.groups]


def pooled(x: Tensor) -> Tensor:
    """Return the mean over the pixels."""
    return x.mean((2, 3))


def ends(channels: int = 8, read: int = 8) -> dict[str, nn.Module]:
    """Return what most networks here begin and end with."""
    return {"stem": conv(3, channels, 3), "last": nn.Linear(read, 5)}


def through(act: Callable[[Tensor], Tensor], channels: int = 8, read: int = 8) -> Anatomy:
    """Follow a network that does one thing between a convolution and a linear layer."""
    return followed(lambda m, x: m.last(pooled(act(F.relu(m.stem(x))))), **ends(channels, read))


def test_a_residual_sum_ties_its_terms() -> None:
    anatomy = followed(lambda m, x: m.last(pooled((y := m.stem(x)) + m.conv(F.relu(y)))), conv=conv(8, 8), **ends())
    assert anatomy.group("stem").producers == ("stem", "conv")


def test_a_concatenation_shifts_positions() -> None:
    anatomy = followed(lambda m, x: m.last(pooled(torch.cat([m.stem(x), m.two(x)], 1))), two=conv(3, 4), **ends(8, 12))
    assert at(anatomy, "two", "last", "in") == each(4, 8)


def test_flattening_gives_a_channel_all_of_its_pixels() -> None:
    anatomy = followed(lambda m, x: m.last(m.stem(x).flatten(1)), **ends(8, 512))
    assert at(anatomy, "stem", "last", "in")[1] == tuple(range(64, 128))


@pytest.mark.parametrize("halve", [
    lambda x: x.chunk(2, 1),
    lambda x: x.split(x.shape[1] // 2, 1),
    lambda x: x.split([x.shape[1] // 2] * 2, 1),
    lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
])  # fmt: skip
def test_equal_parts_go_together(halve: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    def way(net: Custom, x: Tensor) -> object:
        left, right = halve(net.stem(x))
        return net.last(torch.cat([pooled(left), pooled(right).tanh()], 1))

    anatomy = followed(way, **ends())
    assert at(anatomy, "stem", "stem") == at(anatomy, "stem", "last", "in") == tuple((c, c + 4) for c in range(4))


def test_unequal_parts_stay_and_the_rest_is_offered() -> None:
    def way(net: Custom, x: Tensor) -> object:
        left, right = net.stem(x).split([3, 5], 1)
        return net.last(pooled(net.one(left) + net.two(right)))

    anatomy = followed(way, one=conv(3, 8), two=conv(5, 8), **ends())
    assert names(anatomy) == ["one"]
    assert refused(anatomy)["stem"].startswith("cutting it was tried and the forward failed: ")


def test_the_first_channels_alone_stay() -> None:
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


def test_squeeze_and_excitation_is_tied_to_what_it_scales() -> None:
    def way(net: Custom, x: Tensor) -> object:
        x = F.relu(net.stem(x))
        return net.last(pooled(x * net.excite(F.relu(net.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()))

    anatomy = followed(way, squeeze=conv(8, 4), excite=conv(4, 8), **ends())
    assert anatomy.group("stem").producers == ("stem", "excite")
    assert names(anatomy) == ["stem", "squeeze"]


def test_a_shortcut_padded_with_zeros_ties_the_channels_that_it_carries() -> None:
    def way(net: Custom, x: Tensor) -> object:
        x = F.relu(net.stem(x))
        return net.last(pooled(F.relu(net.two(F.relu(net.one(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))))

    anatomy = followed(way, one=nn.Conv2d(8, 6, 3, 2, 1), two=conv(6, 12), **ends(8, 12))
    assert names(anatomy) == ["stem", "one"]
    assert at(anatomy, "stem", "two") == each(8, 2)


def test_tokens_beside_a_token_of_the_network_and_positions_go_together() -> None:
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


def test_a_layer_scale_is_cut_along() -> None:
    anatomy = followed(
        lambda m, x: m.last(pooled((y := m.stem(x)) + m.scale * m.conv(y))),
        scale=nn.Parameter(torch.rand(8, 1, 1)), conv=conv(8, 8), **ends(),
    )  # fmt: skip
    assert Member("scale", "parameter", 0, each(8)) in anatomy.group("stem").members


def test_a_norm_that_moves_the_channels_by_itself_is_followed() -> None:
    class Last(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    anatomy = followed(lambda m, x: m.last(pooled(m.norm(m.stem(x)))), norm=Last(8), **ends())
    assert at(anatomy, "stem", "norm") == each(8)


def by_hand(x: Tensor) -> Tensor:
    """Shuffle pixels, by a factor of two, with operations that only move."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, channels // 4, 2 * height, 2 * width)


@pytest.mark.parametrize("shuffle", [lambda x: F.pixel_shuffle(x, 2), by_hand])
def test_pixels_of_one_channel_go_together(shuffle: Callable[[Tensor], Tensor]) -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.conv(shuffle(m.stem(x))))), conv=conv(4, 8), **ends(16))
    assert at(anatomy, "stem", "stem") == tuple(tuple(range(4 * c, 4 * c + 4)) for c in range(4))


def attend(net: Custom, x: Tensor, *, fused: bool) -> object:
    """Multiply by hand; the scale is a constant."""
    tokens = net.stem(x).flatten(2).transpose(1, 2)
    if fused:
        queries, keys, values = net.qkv(tokens).chunk(3, -1)
    else:
        queries, keys, values = net.q(tokens), net.k(tokens), net.v(tokens)
    queries, keys, values = (y.reshape(len(x), 64, 2, -1).transpose(1, 2) for y in (queries, keys, values))
    weights = (torch.matmul(queries, keys.transpose(-2, -1)) * 0.5).softmax(-1)
    mixed = torch.matmul(weights, values).transpose(1, 2).reshape(len(x), 64, -1)
    return net.last(net.out(mixed).mean(1))


def test_heads_stay_equal_and_queries_go_with_keys() -> None:
    linear = {name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    anatomy = followed(lambda m, x: attend(m, x, fused=False), **linear, **ends())
    assert names(anatomy) == ["stem", "q", "v", "out"]
    assert at(anatomy, "q", "q") == at(anatomy, "q", "k") == tuple((c, c + 4) for c in range(4))
    assert at(anatomy, "v", "out", "in") == tuple((c, c + 4) for c in range(4))


def test_a_fused_layer_loses_as_many_queries_keys_and_values() -> None:
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


def test_queries_and_keys_stay_where_the_scale_counts_them() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        return net.last(F.scaled_dot_product_attention(net.q(tokens), net.k(tokens), net.v(tokens)).mean(1))

    anatomy = followed(way, **{name: nn.Linear(8, 8) for name in ("q", "k", "v")}, **ends())
    assert names(anatomy) == ["stem", "v"]
    assert refused(anatomy)["q"].startswith("cutting it was tried and the output is off by")


def test_cosines_of_queries_and_keys_with_a_scale_a_head_are_followed() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens).reshape(len(x), 64, 2, -1).transpose(1, 2) for layer in (net.q, net.k, net.v))
        q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
        mixed = (q @ k.transpose(-2, -1) * net.scale.exp()).softmax(-1) @ v
        return net.last(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    layers = {name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    anatomy = followed(way, **layers, scale=nn.Parameter(torch.randn(2, 1, 1)), **ends())
    assert names(anatomy) == ["stem", "q", "v", "out"]


def test_a_border_of_constants_belongs_to_the_channels_that_it_surrounds() -> None:
    def way(net: Custom, x: Tensor) -> object:
        return net.last(net.mid(F.pad(net.stem(x), (0, 1, 1, 0)).flatten(2).transpose(1, 2)).mean(1))

    anatomy = followed(way, mid=nn.Linear(8, 8), **ends())
    assert names(anatomy) == ["stem", "mid"]


def test_multi_head_attention_stays_by_name() -> None:
    def way(net: Custom, x: Tensor) -> object:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        return net.last(net.mid(net.mha(tokens, tokens, tokens)[0]).mean(1))

    anatomy = followed(way, mha=nn.MultiheadAttention(8, 2, batch_first=True), mid=nn.Linear(8, 8), **ends())
    assert refused(anatomy) == {"stem": "its channels stay: 'mha' (MultiheadAttention) is not cut"}
    assert names(anatomy) == ["mid"]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_stay_by_name(kind: type[nn.GRU | nn.LSTM]) -> None:
    anatomy = followed(
        lambda m, x: m.last(m.mid(m.cell(m.stem(x))[0].mean(1))), (6, 3),
        stem=nn.Linear(3, 8), cell=kind(8, 8, batch_first=True), mid=nn.Linear(8, 8), last=nn.Linear(8, 5),
    )  # fmt: skip
    assert refused(anatomy) == {"stem": f"its channels stay: 'cell' ({kind.__name__}) is not cut"}
    assert names(anatomy) == ["mid"]


def test_what_is_added_to_an_embedding_stays_by_name() -> None:
    def way(net: Custom, x: Tensor) -> object:
        words = net.words((x[:, 0] > 0).long())
        return net.last((words + net.two(F.relu(net.one(words)))).mean(1))

    anatomy = followed(
        way, (1, 6), words=nn.Embedding(2, 8), one=nn.Linear(8, 8), two=nn.Linear(8, 8), last=nn.Linear(8, 5)
    )
    assert refused(anatomy) == {"two": "its channels stay: 'words' (Embedding) is not cut"}
    assert names(anatomy) == ["one"]


def test_what_a_bare_weight_reads_stays_by_name() -> None:
    anatomy = followed(
        lambda m, x: m.last(F.linear(pooled(m.stem(x)), m.bare)), bare=nn.Parameter(torch.randn(8, 8)), **ends()
    )
    assert "with the parameter 'bare'" in refused(anatomy)["stem"]


def test_what_the_weight_of_another_layer_reads_stays_by_name() -> None:
    anatomy = followed(lambda m, x: m.last(F.linear(pooled(m.stem(x)), m.idle.weight)), idle=nn.Linear(8, 8), **ends())
    assert refused(anatomy)["stem"].endswith("they meet the parameter 'idle.weight' outside of its layer")


def test_a_weight_that_is_computed_before_every_forward_stays_by_name() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    anatomy = followed(lambda m, x: m.last(pooled(m.mid(m.normed(m.stem(x))))), normed=normed, mid=conv(8, 8), **ends())
    assert refused(anatomy)["stem"] == "its channels stay: 'normed' (ParametrizedConv2d) is not cut"
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
def test_what_treats_every_channel_alike_binds_none(act: Callable[[Tensor], Tensor]) -> None:
    anatomy = through(act)
    assert at(anatomy, "stem", "stem") == at(anatomy, "stem", "last", "in") == each(8)


@pytest.mark.parametrize(("act", "why"), [
    (lambda x: x + torch.ones(1, 8, 1, 1), "the operation add mixes them with a constant or an input of the network"),
    (lambda x: x.softmax(1), "the operation _softmax mixes them"),
    (lambda x: torch.fft.fft(x, dim=1).real, "the operation _fft_r2c mixes them"),
    (lambda x: x.mean(1, keepdim=True).expand_as(x), "they can only go all at once: the operation mean mixes them"),
    (lambda x: x - x.mean(1, keepdim=True), "they are stretched over other channels"),
    (lambda x: x.cumsum(1), "the operation cumsum mixes them"),
    (lambda x: F.local_response_norm(x, 3), "the operation avg_pool3d mixes them"),
    (lambda x: torch.einsum("bchw,cd->bdhw", x, torch.eye(8)), "the operation bmm mixes them with a constant or an"),
])  # fmt: skip
def test_what_mixes_channels_is_named(act: Callable[[Tensor], Tensor], why: str) -> None:
    assert refused(through(act))["stem"].startswith(f"its channels stay: {why}")


def test_features_that_are_normalized_to_length_one_are_cut() -> None:
    layers = {"first": nn.Linear(6, 8), "last": nn.Linear(8, 5)}
    anatomy = followed(lambda m, x: m.last(F.normalize(m.first(x), dim=1)), (6,), **layers)
    assert at(anatomy, "first", "last", "in") == each(8)


def test_a_map_that_is_stretched_over_channels_does_not_bind_them() -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.stem(x) * m.look(x).sigmoid())), look=conv(3, 1), **ends())
    assert names(anatomy) == ["stem"]
    assert refused(anatomy)["look"] == "its channels stay: they are stretched over other channels"


def test_a_gated_unit_halves_its_channels() -> None:
    anatomy = through(lambda x: F.glu(x, 1), 16)
    assert at(anatomy, "stem", "stem") == tuple((c, c + 8) for c in range(8))


def test_buffers_beside_channels_fix_them() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.randn(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.shift  # type: ignore[operator]

    anatomy = followed(lambda m, x: m.last(pooled(m.shift(m.stem(x)))), shift=Shifted(), **ends())
    assert refused(anatomy)["stem"].startswith("its channels stay: the operation add mixes them with a constant")


@pytest.mark.parametrize("slopes", [1, 8])
def test_slopes_go_along_where_every_channel_has_one(slopes: int) -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.act(m.stem(x)))), act=nn.PReLU(slopes), **ends())
    assert ("act" in anatomy.group("stem").producers) == (slopes == 8)


def test_a_group_norm_keeps_its_groups_equal() -> None:
    anatomy = followed(lambda m, x: m.last(pooled(m.norm(m.stem(x)))), norm=nn.GroupNorm(4, 8), **ends())
    assert at(anatomy, "stem", "stem") == ((0, 2, 4, 6), (1, 3, 5, 7))


@pytest.mark.parametrize("space", [1, 3])
def test_other_dimensions_of_space_are_the_same(space: int) -> None:
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


def test_a_head_that_runs_only_in_training_is_cut_along() -> None:
    def way(net: Custom, x: Tensor) -> object:
        x = F.relu(net.stem(x))
        scores = net.last(pooled(x))
        return (scores, net.helper(F.relu(net.aside(pooled(x))))) if net.training else scores

    anatomy = followed(way, aside=nn.Linear(8, 6), helper=nn.Linear(6, 5), **ends())
    assert names(anatomy) == ["stem"]
    assert at(anatomy, "stem", "aside", "in") == each(8)


def test_an_example_that_does_not_fit_gives_one_line() -> None:
    net = scrambled(Custom(lambda m, x: m.last(m.stem(x).flatten(1)), **ends(8, 512)))
    with pytest.raises(ValueError, match=r"^the network must accept the example.*\(1, 3, 9, 9\): [^\n]*$"):
        trace(net, torch.randn(1, 3, 9, 9))
