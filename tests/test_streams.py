"""The residual stream of a transformer: embeddings, norms of one's own, and what is added to it."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from objectives import Parameters
from search.costs.cost_model import CostModel
from spaces import Prune, PruneRatios, deployed, trace
from spaces.network.cutting import cut
from tests.random_plans import groups_that_can_be_cut, random_plans, refused

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 12


class Own(nn.Module):
    """A norm with its own weight and bias, and a stored shape that some ways to compute it read."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.randn(WIDTH))
        self.normalized_shape, self.dim, self.compute = (WIDTH,), WIDTH, compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def by_hand(m: Own, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5) * m.weight + m.bias


def by_variance(m: Own, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * m.weight + m.bias


def by_squares(m: Own, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return m.weight * ((x - mean) / (x.square().mean(-1, keepdim=True) - mean.square() + 1e-5).sqrt()) + m.bias


def by_stored_shape(m: Own, x: Tensor) -> Tensor:
    return F.layer_norm(x, m.normalized_shape, m.weight, m.bias)


def by_stored_width(m: Own, x: Tensor) -> Tensor:
    return F.layer_norm(x, (m.dim,), m.weight, m.bias)


def by_group_norm(m: Own, x: Tensor) -> Tensor:
    return F.group_norm(x.transpose(1, 2), 1, m.weight, m.bias).transpose(1, 2)


LAYER_NORMS = (by_hand, by_variance, by_squares, by_stored_shape, by_stored_width)


class Stream(nn.Module):
    """A residual stream with a norm, between two layers."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            nn.Linear(*sizes) for sizes in ((5, WIDTH), (WIDTH, 20), (20, WIDTH), (WIDTH, 3))
        )
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))  # type: ignore[no-any-return]


def features() -> Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


STREAM = {"embed": WIDTH, "up": 20}


@pytest.mark.parametrize("compute", [*LAYER_NORMS, by_group_norm])
def test_a_layer_norm_of_ones_own_lets_the_stream_go(compute: Callable[[Any, Tensor], Tensor]) -> None:
    assert groups_that_can_be_cut(Stream(Own(compute)).eval(), features()) == STREAM


@pytest.mark.parametrize("compute", LAYER_NORMS)
def test_a_layer_norm_of_ones_own_is_cut_as_torchs(compute: Callable[[Any, Tensor], Tensor]) -> None:
    net = Stream(Own(compute)).eval()
    twin = copy.deepcopy(net)
    twin.norm = nn.LayerNorm(WIDTH)
    twin.load_state_dict(net.state_dict())
    outputs = []
    for each in (net, twin.eval()):
        group = trace(each, features()).group("embed")
        smaller = copy.deepcopy(each)
        cut(smaller, [(group, (0, 2, 3, 7, 11))])
        outputs.append(smaller(features()).detach())
    torch.testing.assert_close(*outputs)


class Rms(nn.Module):
    """The norm of LLaMA, or that of T5, as written in their code."""

    def __init__(self, gain: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5), gain

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * self.gain(x))


def root_of_mean(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("norm", [
    lambda: nn.RMSNorm(WIDTH),
    lambda: Rms(root_of_mean),
    lambda: Rms(lambda x: 1 / (x * x).mean(dim=-1, keepdim=True).add(1e-6).sqrt()),
    lambda: Rms(lambda x: math.sqrt(WIDTH) / x.norm(dim=-1, keepdim=True)),
    lambda: Rms(lambda x: 1 / x.std(-1, keepdim=True)),
    lambda: Rms(lambda x: torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)),
])  # fmt: skip
def test_a_norm_by_the_root_mean_square_lets_the_stream_go(norm: Callable[[], nn.Module]) -> None:
    assert groups_that_can_be_cut(Stream(norm()).eval(), features()) == STREAM


def test_a_subclass_of_a_layer_norm_may_compute_it_over_the_channels_of_a_map() -> None:
    class OverChannels(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(1, keepdim=True)
            x = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + self.eps).sqrt()
            return self.weight[:, None, None] * x + self.bias[:, None, None]

    net = nn.Sequential(nn.Conv2d(3, 8, 3), OverChannels(8), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4)).eval()
    assert groups_that_can_be_cut(net, torch.randn(2, 3, 8, 8)) == {"0": 8, "2": 6}


def test_a_response_norm_divides_by_the_mean_over_channels() -> None:
    class Response(nn.Module):  # Woo et al. 2023, ConvNeXt V2
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.randn(1, 1, 20)), nn.Parameter(torch.randn(1, 1, 20))

        def forward(self, x: Tensor) -> Tensor:
            size = x.norm(dim=1, keepdim=True)
            y: Tensor = self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x
            return y

    net = nn.Sequential(nn.Linear(5, 20), Response(), nn.Linear(20, 3)).eval()
    assert groups_that_can_be_cut(net, features()) == {"0": 20}


@pytest.mark.parametrize("use", [
    lambda m, x: m.head(x.mean(1)) * x.mean(-1).mean(1, keepdim=True),  # an output
    lambda m, x: m.head((x * m.look(x.mean(-1, keepdim=True))).mean(1)),  # read by a layer
])  # fmt: skip
def test_a_mean_over_channels_that_is_no_norm_keeps_them(use: Callable[[Any, Tensor], Tensor]) -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head, self.look = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return use(self, self.embed(x).relu())

    net = Looking().eval()
    assert refused(net, features())["embed"].startswith("its channels stay: they can only be removed all at once")


class Tokens(nn.Module):
    """Embeddings of words and positions, a class token, a shift and a scale on the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, WIDTH, padding_idx=0), nn.Embedding(9, WIDTH)
        self.first, self.table = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 10, WIDTH))
        self.scale = nn.Parameter(torch.full((WIDTH,), 1e-5))
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("shift", torch.randn(WIDTH))
        self.up, self.down, self.head = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = torch.cat([self.first.expand(len(ids), -1, -1), x], 1)
        x = x + self.table[:, : x.shape[1]] - self.get_buffer("shift")
        x = x + self.scale * self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


def ids() -> Tensor:
    return torch.randint(1, 30, (2, 7), generator=torch.Generator().manual_seed(0))


def test_embeddings_tokens_tables_and_buffers_are_cut_with_the_stream() -> None:
    net = Tokens().eval()
    assert groups_that_can_be_cut(net, ids()) == {"up": 20, "down": WIDTH}
    members = {member.layer for member in trace(net, ids()).group("down").members}
    assert members == {"words", "places", "first", "table", "scale", "shift", "norm", "up", "down", "head"}


def test_parameters_of_embeddings_and_tables_are_foreseen() -> None:
    net = Tokens().eval()
    model = CostModel(trace(net, ids()), deployed(net, ids()), (Parameters(),))
    for plan in random_plans(net, ids(), 3):
        count = Parameters()(deployed(plan.apply(net, ids()), ids()))
        assert float(model.exact([plan])["parameters"][0]) == count


def test_an_embedding_alone_is_a_group_of_its_own() -> None:
    net = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randint(0, 50, (2, 6))
    assert groups_that_can_be_cut(net, x) == {"0": 32, "1": 64}
    assert PruneRatios().acts_on(trace(net, x))["0"] == "8-32 of 32 units"
    assert Prune((("0", 0.5),)).apply(net, x)[0].weight.shape == (50, 16)  # type: ignore[index]


def test_a_bag_of_embeddings_is_cut() -> None:
    net = nn.Sequential(nn.EmbeddingBag(50, 16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert groups_that_can_be_cut(net, torch.randint(0, 50, (2, 6))) == {"0": 16, "1": 8}


def test_a_table_that_is_looked_up_without_a_module_is_cut() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(30, WIDTH)), nn.Linear(WIDTH, 3)
            self.mid = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y = F.embedding(x, self.table)
            return self.head((y + self.mid(y)).mean(1))  # type: ignore[no-any-return]

    net = Table().eval()
    assert groups_that_can_be_cut(net, ids()) == {"mid": WIDTH}
    assert "table" in {member.layer for member in trace(net, ids()).group("mid").members}


def test_an_embedding_that_renormalizes_its_rows_stays() -> None:
    net = nn.Sequential(nn.Embedding(30, WIDTH, max_norm=1.0), nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert groups_that_can_be_cut(net, ids()) == {"1": 8}


def test_an_embedding_that_the_last_layer_shares_stays() -> None:
    net = nn.Sequential(nn.Embedding(30, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 30, bias=False)).eval()
    net[2].weight = net[0].weight
    assert refused(net, ids())["1"].startswith("its channels stay: the weight of '2' is shared with '0")


def test_a_norm_with_a_group_for_each_channel_is_cut() -> None:
    net = nn.Sequential(nn.Conv1d(1, 8, 3), nn.GroupNorm(8, 8), nn.GELU(), nn.Conv1d(8, 6, 3), nn.Flatten(),
                        nn.Linear(36, 4)).eval()  # fmt: skip
    assert groups_that_can_be_cut(net, torch.randn(2, 1, 10)) == {"0": 8, "3": 6}


def test_frozen_statistics_are_cut_with_their_channels() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.rand(8) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            scale = (self.get_buffer("weight") * (self.get_buffer("running_var") + 1e-5).rsqrt())[:, None, None]
            shift = self.get_buffer("bias")[:, None, None] - self.get_buffer("running_mean")[:, None, None] * scale
            return x * scale + shift

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Frozen(), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    assert groups_that_can_be_cut(net, torch.randn(2, 3, 8, 8)) == {"0": 8}


def test_a_parameter_that_is_written_over_tokens_in_training_is_cut_with_the_stream() -> None:
    class Masked(nn.Module):  # as the hidden states of wav2vec 2.0
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mid, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 8), nn.Linear(8, 3)
            self.mask = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            if self.training:
                x[torch.arange(x.shape[1])[None].expand(x.shape[:2]) % 2 == 0] = self.mask
            return self.head(self.mid(x).relu().mean(1))  # type: ignore[no-any-return]

    net = Masked().eval()
    assert groups_that_can_be_cut(net, features()) == {"embed": WIDTH, "mid": 8}
    smaller = Prune((("embed", 0.5),)).apply(net, features())
    assert smaller.train()(features()).shape == (2, 3)
