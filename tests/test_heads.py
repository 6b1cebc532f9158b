"""Attention whose heads have a stated size, a stated number, or both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces import Distill, Magnitude, Plan, Prune, PruneRatios, trace
from spaces.dependency.attention_scale import FixedScale
from spaces.network.cutting import cut
from tests.random_plans import groups_that_can_be_cut, refused

WIDTH, HEADS, SIZE = 24, 4, 6

Split = Callable[[Any, Tensor], Tensor]  # (B, T, C) -> (B, T, heads, size)
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores: Tensor = q @ k.transpose(-1, -2) / SIZE**0.5
    return scores.softmax(-1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) / SIZE**0.5).softmax(-1), v)


class Attention(nn.Module):
    """Attention on a stream without a residual, so that its width is fixed at both ends."""

    def __init__(self, split: Split, mix: Mix = F.scaled_dot_product_attention, std: float = 0.02) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.heads, self.head_size, self.split, self.mix = HEADS, SIZE, split, mix
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(self, layer(x)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = self.mix(q, k, v).transpose(1, 2)
        return x + self.out(mixed.reshape(*x.shape[:2], -1))  # type: ignore[no-any-return]


def tokens(width: int = WIDTH) -> Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))


def by_size(_: Attention, y: Tensor) -> Tensor:
    return y.view(*y.shape[:2], -1, SIZE)


SPLITS_BY_SIZE: dict[str, Split] = {
    "view": by_size,
    "reshape": lambda _, y: y.reshape(y.shape[0], y.shape[1], -1, SIZE),
    "unflatten": lambda _, y: y.unflatten(-1, (-1, SIZE)),
    "computed": lambda _, y: y.view(*y.shape[:2], y.shape[-1] // SIZE, SIZE),
    "chunks": lambda _, y: torch.stack(y.split(SIZE, -1), 2),
}


@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize("mix", [F.scaled_dot_product_attention, eager, einsum])
def test_heads_of_a_stated_size_are_cut_whole_and_queries_keys_and_values_together(mix: Mix, std: float) -> None:
    net = Attention(by_size, mix, std).eval()
    assert groups_that_can_be_cut(net, tokens()) == {"q": HEADS}
    texts = PruneRatios().acts_on(trace(net, tokens()))
    assert texts["q"] == "1-4 of 4 units, together with k, v"


@pytest.mark.parametrize("split", ["view", "reshape", "unflatten", "computed"])
def test_a_stated_size_is_found_however_it_is_stated(split: str) -> None:
    assert groups_that_can_be_cut(Attention(SPLITS_BY_SIZE[split]).eval(), tokens()) == {"q": HEADS}


def test_a_stated_number_of_heads_leaves_the_same_channels_of_every_head() -> None:
    net = Attention(lambda _, y: y.view(*y.shape[:2], HEADS, -1), eager).eval()
    assert groups_that_can_be_cut(net, tokens()) == {"q": SIZE, "v": SIZE}


def test_whole_heads_compute_what_they_computed_with_all_others() -> None:
    net = Attention(by_size, eager, 0.3).eval()
    group = trace(net, tokens()).group("q")
    smaller = Attention(by_size, eager).eval()
    smaller.load_state_dict(net.state_dict())
    cut(smaller, [(group, (1, 3))])
    with torch.no_grad():
        net.out.weight[:, :SIZE] = net.out.weight[:, 2 * SIZE : 3 * SIZE] = 0
        torch.testing.assert_close(smaller(tokens()), net(tokens()), atol=1e-5, rtol=1e-4)


def test_numbers_of_heads_that_a_module_states_are_changed_with_them() -> None:
    net: Any = Attention(lambda m, y: y.view(*y.shape[:2], m.heads, m.head_size), eager).eval()
    assert groups_that_can_be_cut(net, tokens()) == {"q": HEADS}
    plan = Plan((Prune((("q", 0.5),), 1, Magnitude(), False),), Distill())  # noqa: FBT003
    smaller: Any = plan.apply(net, tokens())
    assert (smaller.heads, smaller.head_size, net.heads) == (2, SIZE, HEADS)


def test_heads_whose_number_and_size_the_code_states_are_refused_with_the_reason() -> None:
    net = Attention(lambda _, y: y.view(*y.shape[:2], HEADS, SIZE), eager).eval()
    assert not trace(net, tokens()).groups
    for name in "qkv":
        assert refused(net, tokens())[name].startswith("cutting it was tried, but the forward pass failed: shape")


class Fused(nn.Module):
    """One layer for queries, keys and values, as in timm and GPT-NeoX."""

    def __init__(self, split: Callable[[Any, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.qkv, self.proj, self.split = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), split
        self.num_heads, self.head_dim, self.attn_dim = HEADS, SIZE, WIDTH

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self, self.qkv(x))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(mixed.transpose(1, 2).reshape(*x.shape[:2], self.attn_dim))  # type: ignore[no-any-return]


def test_a_fused_layer_loses_the_same_heads_of_queries_keys_and_values() -> None:
    def split(m: Fused, y: Tensor) -> tuple[Tensor, ...]:
        return y.reshape(*y.shape[:2], 3, m.num_heads, m.head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    net = Fused(split).eval()
    assert groups_that_can_be_cut(net, tokens()) == {"qkv": HEADS}
    heads = next(m.positions for m in trace(net, tokens()).group("qkv").members if (m.layer, m.side) == ("qkv", "out"))
    assert heads[1] == tuple(part * WIDTH + SIZE + channel for part in range(3) for channel in range(SIZE))


def test_a_fused_layer_may_hold_queries_keys_and_values_of_one_head_side_by_side() -> None:
    def split(_: Fused, y: Tensor) -> tuple[Tensor, ...]:
        return y.view(*y.shape[:2], -1, 3 * SIZE).transpose(1, 2).chunk(3, -1)

    net = Fused(split).eval()
    assert groups_that_can_be_cut(net, tokens()) == {"qkv": HEADS}


class Grouped(nn.Module):
    """Two queries share each key and value, as in LLaMA."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, width) for width in (32, 16, 16, 32))
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, 8)).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        return x + self.out(self.mix(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def repeated(x: Tensor) -> Tensor:
    batch, heads, length, size = x.shape
    return x[:, :, None].expand(batch, heads, 2, length, size).reshape(batch, 2 * heads, length, size)


@pytest.mark.parametrize("mix", [
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)),
    lambda q, k, v: F.scaled_dot_product_attention(q, repeated(k), repeated(v)),
    lambda q, k, v: eager(q, repeated(k), repeated(v)),
], ids=["enable_gqa", "repeat_interleave", "expand", "eager"])  # fmt: skip
def test_grouped_queries_are_cut_with_their_key_and_value(mix: Mix) -> None:
    net = Grouped(mix).eval()
    assert groups_that_can_be_cut(net, tokens(32)) == {"q": 2}
    widths = {m.layer: len(m.positions[0]) for m in trace(net, tokens(32)).group("q").members if m.side == "out"}
    assert widths == {"q": 16, "k": 8, "v": 8}


def test_a_bias_for_each_head_is_cut_with_the_head() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.table = nn.Parameter(torch.randn(9, HEADS))
            self.register_buffer("distance", torch.arange(5)[:, None] - torch.arange(5)[None] + 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).view(*x.shape[:2], -1, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
            bias = self.table[self.get_buffer("distance").view(-1)].view(5, 5, -1).permute(2, 0, 1)[None]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
            return x + self.out(mixed.reshape(*x.shape[:2], -1))  # type: ignore[no-any-return]

    net = Biased().eval()
    assert groups_that_can_be_cut(net, tokens()) == {"q": HEADS}
    assert "table" in {member.layer for member in trace(net, tokens()).group("q").members}


def test_rotated_queries_and_keys_are_cut_by_whole_heads() -> None:
    class Rotated(Attention):
        def __init__(self) -> None:
            super().__init__(by_size)
            self.register_buffer("frequencies", 1.0 / torch.arange(1.0, SIZE // 2 + 1))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (by_size(self, layer(x)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            angles = torch.arange(x.shape[1])[:, None] * self.get_buffer("frequencies")[None]
            angles = torch.cat([angles, angles], -1)
            q, k = (
                y * angles.cos() + torch.cat([-y[..., SIZE // 2 :], y[..., : SIZE // 2]], -1) * angles.sin()
                for y in (q, k)
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return x + self.out(mixed.reshape(*x.shape[:2], -1))  # type: ignore[no-any-return]

    assert groups_that_can_be_cut(Rotated().eval(), tokens()) == {"q": HEADS}


class Stacked(nn.Module):
    """Attention that takes its width from the stream, as in nanoGPT: both must be equal."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, HEADS, width // HEADS).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = eager(q, k, v).transpose(1, 2).contiguous().view(batch, length, width)
        return self.head((x + self.out(mixed)).mean(1))  # type: ignore[no-any-return]


def test_widths_that_must_be_equal_are_cut_together() -> None:
    assert groups_that_can_be_cut(Stacked().eval(), tokens(8)) == {"embed": SIZE}


class OneLayer(nn.Module):
    """Attention as in timm: one layer for queries, keys and values, the stream's width divided by the heads.

    A network has one stage for each number of heads, each twice as wide as the one before. With a `size`, the heads
    have this size, and the stream must have the width of all heads.
    """

    def __init__(self, heads: tuple[int, ...], size: int | None = None, parts: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(8, SIZE * heads[0])
        self.stages = nn.ModuleList(Stage(SIZE * number, number, size, parts) for number in heads)
        self.between = nn.ModuleList(
            nn.Linear(SIZE * low, SIZE * high) for low, high in itertools.pairwise((*heads, heads[-1]))
        )
        self.head = nn.Linear(SIZE * heads[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for stage, between in zip(self.stages, self.between, strict=True):
            x = between(stage(x))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Two residual branches: attention, and two layers."""

    def __init__(self, width: int, heads: int, size: int | None, parts: int) -> None:
        super().__init__()
        self.parts, self.num_heads, self.head_dim = parts, heads, size
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, parts * width), nn.Linear(width, width)
        self.q = nn.Linear(width, width) if parts == 2 else None
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.norm(x)
        size = self.head_dim or width // self.num_heads
        many = self.qkv(y).reshape(batch, length, self.parts, self.num_heads, size).permute(2, 0, 3, 1, 4)
        found = [many[part] for part in range(self.parts)]
        if self.q is not None:
            found.insert(0, self.q(y).reshape(batch, length, self.num_heads, size).transpose(1, 2))
        x = x + self.proj(eager(*found).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.up(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("heads", [(4,), (2, 4)])
def test_a_stream_that_is_divided_into_heads_is_cut_with_them(heads: tuple[int, ...], parts: int) -> None:
    units = groups_that_can_be_cut(OneLayer(heads, parts=parts).eval(), tokens(8))
    streams = {"embed": SIZE, "between.0": SIZE} if len(heads) > 1 else {"embed": SIZE}
    ends = {name: number for name, number in units.items() if name.startswith("between") and name not in streams}
    assert all(number > 1 for number in ends.values())
    hidden = {f"stages.{index}.up": 2 * SIZE * number for index, number in enumerate(heads)}
    assert {name: number for name, number in units.items() if name not in ends} == streams | hidden


@pytest.mark.parametrize("parts", [2, 3])
def test_a_stream_as_wide_as_all_heads_of_a_stated_size_is_cut_by_whole_heads(parts: int) -> None:
    net = OneLayer((2, 4), SIZE, parts).eval()
    units = groups_that_can_be_cut(net, tokens(8))
    assert units["embed"] == 2
    assert units["between.0"] == 4
    numbers = [m.layer for m in trace(net, tokens(8)).group("between.0").members if m.side == "number"]
    assert numbers == ["stages.1.num_heads"]


class Reduced(nn.Module):
    """A layer whose output is reshaped to the width of its input, as the reduction in SegFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 2, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        batch, width = x.shape[:2]
        return self.last(self.reduce(x).reshape(batch, width, -1).mean(-1))  # type: ignore[no-any-return]


def test_a_layer_that_must_keep_the_width_of_its_input_is_cut_with_it() -> None:
    net, x = Reduced().eval(), torch.randn(2, 3, 10, 10)
    assert groups_that_can_be_cut(net, x) == {"stem": 16}
    assert [m.layer for m in trace(net, x).group("stem").members] == ["stem", "reduce", "reduce", "last"]


def test_every_pair_of_neighbouring_groups_is_cut_apart() -> None:
    from spaces.dependency.checks import _trials  # noqa: PLC0415

    net = nn.Sequential(nn.Linear(4, 6), *[layer for _ in range(9) for layer in (nn.ReLU(), nn.Linear(6, 6))]).eval()
    groups = trace(net, torch.randn(2, 4)).groups
    trials = [{group.name: len(kept) for group, kept in cuts} for cuts in _trials(groups)]
    for one, other in itertools.pairwise(group.name for group in groups):
        assert any(one in cuts and other not in cuts for cuts in trials)
        assert any(other in cuts and one not in cuts for cuts in trials)
    assert all(len({cuts[name] for cuts in trials if name in cuts}) > 2 for name in trials[-1])


def scored(scores: Tensor, v: Tensor) -> Tensor:
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed


def turned(k: Tensor) -> Tensor:
    return k.transpose(-1, -2)


def root(q: Tensor) -> float:
    return math.sqrt(q.shape[-1])


def root_tensor(q: Tensor) -> Tensor:
    return torch.sqrt(torch.tensor(q.size(-1) * 1.0)).to(dtype=q.dtype)


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.clone()
    q *= q.shape[-1] ** -0.5
    return scored(torch.einsum("bhqd,bhkd->bhqk", q, k), v)


def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (y.flatten(0, 1) for y in (q, k, v))
    scores: Tensor = torch.baddbmm(q.new_zeros(1), q, turned(k), beta=0, alpha=1 / root(q))
    mixed: Tensor = scored(scores, v).unflatten(0, (-1, HEADS))
    return mixed


SCALES: dict[str, Mix] = {
    "of the operation": F.scaled_dot_product_attention,
    "stated": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1 / root(q)),
    "multiplied": lambda q, k, v: ((q @ k.transpose(-1, -2)) * (1.0 / math.sqrt(k.size(-1)))).softmax(-1) @ v,
    "divided": lambda q, k, v: torch.einsum("bhqd,bhkd->bhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1) @ v,
    "of queries": lambda q, k, v: scored((q / root(q)) @ turned(k), v),
    "of queries, in place": in_place,
    "of queries of the operation": lambda q, k, v: F.scaled_dot_product_attention(q / root(q), k, v, scale=1.0),
    "of keys": lambda q, k, v: scored(q @ turned(root(k) ** -1 * k), v),
    "of both": lambda q, k, v: scored(q * root(q) ** -0.5 @ turned(k / root(k) ** 0.5), v),
    "a tensor": lambda q, k, v: scored(q @ turned(k) / root_tensor(q), v),
    "a tensor, of keys": lambda q, k, v: scored(q @ (turned(k) / root_tensor(q)), v),
    "an integer": lambda q, k, v: scored(q @ turned(k) / q.shape[-1], v),
    "of a sum": lambda q, k, v: scored((q @ turned(k) + torch.eye(q.shape[-2])) / root(q), v),
    "of an addition": added,
}


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_that_depends_on_the_channels_of_a_head_does_not_keep_them(scale: str) -> None:
    class Divided(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            batch, length, width = x.shape
            q, k, v = (
                layer(x).view(batch, length, HEADS, width // HEADS).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
            mixed = SCALES[scale](q, k, v).transpose(1, 2).contiguous().view(batch, length, width)
            return self.head((x + self.out(mixed)).mean(1))  # type: ignore[no-any-return]

    assert groups_that_can_be_cut(Divided().eval(), tokens(8)) == {"embed": SIZE}


@pytest.mark.parametrize("scale", SCALES)
def test_in_trials_the_scale_of_one_channel_is_that_of_all(scale: str) -> None:
    q, k = torch.randn(2, 2, HEADS, 5, 8)
    q[..., 1:] = 0
    with FixedScale():
        whole, one = (
            SCALES[scale](q[..., :size], k[..., :size], tokens(8)[:, None].expand(-1, HEADS, -1, -1)) for size in (8, 1)
        )
    torch.testing.assert_close(one, whole)


def test_a_number_that_multiplies_a_weight_keeps_the_channels() -> None:
    class Equalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = nn.Linear(8, 12), nn.Linear(6, 3)
            self.weight = nn.Parameter(torch.randn(6, 12))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.last(x @ (self.weight * x.shape[-1] ** -0.5).T)  # type: ignore[no-any-return]

    assert "stem" not in groups_that_can_be_cut(Equalized().eval(), tokens(8))


def test_another_number_that_depends_on_the_channels_keeps_them() -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = nn.Linear(8, 12), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.last(x.sum(-1, keepdim=True) / x.shape[-1])  # type: ignore[no-any-return]

    assert groups_that_can_be_cut(Averaged().eval(), tokens(8)) == {}
