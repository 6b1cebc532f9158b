"""Small networks, one for each way of writing a network that is hard to compress; `studies.coverage own` tries them.

Weights are random and untrained: what counts is that every offered plan can be built and run, that files agree, and how
much of the work can be compressed.

Legend: `B` examples, `T` tokens, `C` channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.nn.utils import parametrizations
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WIDTH, HEADS, SIZE, TOKENS, WORDS = 32, 4, 8, 12, 50  # of streams, heads, one head, sentences, vocabularies


class Structure(NamedTuple):
    """A network and a batch of its inputs, each made by a function."""

    network: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def images() -> Tensor:
    """Return two images (B, 3, 16, 16)."""
    return torch.randn(2, 3, 16, 16)


def frames() -> Tensor:
    """Return two sequences of frames (B, T, C)."""
    return torch.randn(2, TOKENS, WIDTH)


def words() -> Tensor:
    """Return two sentences as numbers of words (B, T)."""
    return torch.randint(WORDS, (2, TOKENS))


def picture_and_numbers() -> tuple[Tensor, Tensor]:
    """Return two images and two numbers for each."""
    return images(), torch.randn(2, 2)


class Written(nn.Module):
    """A network whose forward is a function of its modules and its input."""

    def __init__(self, way: Callable[[Any, Any], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.way = way
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the network takes and returns
        """Call the function."""
        return self.way(self, inputs[0] if len(inputs) == 1 else inputs)


def conv(inputs: int, outputs: int, size: int = 3, **options: int) -> nn.Conv2d:
    """Return a convolution that keeps the size of its input."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)  # type: ignore[arg-type]


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:  # noqa: ANN401 - of the operation
    """Return attention over tokens, with the heads joined again (B, T, C)."""
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def transformer(way: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> nn.Module:
    """Return a block around a way of attention, between an embedding of frames and a head."""
    common = {name: nn.Linear(WIDTH, WIDTH) for name in ("embed", "q", "k", "v", "proj")} | {
        "norm": nn.LayerNorm(WIDTH), "up": nn.Linear(WIDTH, 64), "down": nn.Linear(64, WIDTH),
        "head": nn.Linear(WIDTH, 5),
    }  # fmt: skip

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        x = m.embed(x)
        x = x + m.proj(way(m, m.norm(x)))
        return m.head((x + m.down(F.gelu(m.up(x)))).mean(1))

    return Written(forward, **(common | parts))


def heads_by_size() -> nn.Module:
    """Return attention that states the size of its heads, as all of Hugging Face's do."""
    return transformer(
        lambda m, y: attention(*(one(y).view(len(y), TOKENS, -1, SIZE).transpose(1, 2) for one in (m.q, m.k, m.v)))
    )


def heads_of_the_stream() -> nn.Module:
    """Return attention that divides the width of the stream by its heads, with one layer for q, k and v."""

    def way(m: Any, y: Tensor) -> Tensor:  # noqa: ANN401
        batch, length, width = y.shape
        many = m.qkv(y).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        return attention(*many).reshape(batch, length, width)

    return transformer(way, qkv=nn.Linear(WIDTH, 3 * WIDTH))


def grouped_queries() -> nn.Module:
    """Return attention with fewer heads of keys and values than of queries."""

    def way(m: Any, y: Tensor) -> Tensor:  # noqa: ANN401
        q, k, v = (one(y).view(len(y), TOKENS, -1, SIZE).transpose(1, 2) for one in (m.q, m.k, m.v))
        return attention(q, k, v, enable_gqa=True)

    return transformer(way, k=nn.Linear(WIDTH, 2 * SIZE), v=nn.Linear(WIDTH, 2 * SIZE))


def torch_transformer() -> nn.Module:
    """Return the encoder of torch, behind embeddings of words and positions."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True)
    return Written(
        lambda m, x: m.head(m.encoder(m.words(x) + m.places[:, : x.shape[1]])[:, 0]),
        words=nn.Embedding(WORDS, WIDTH), places=nn.Parameter(torch.randn(1, TOKENS, WIDTH)),
        encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), head=nn.Linear(WIDTH, 5),
    )  # fmt: skip


def norms_by_hand() -> nn.Module:
    """Return RMSNorm and LayerNorm written as formulas, and F.layer_norm with bare parameters."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        x = m.first(x)
        x = x + m.second(x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * m.gain)
        x = x + m.third((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt())
        return m.head(F.layer_norm(x, (x.shape[-1],), m.weight, m.bias).mean(1))

    linear = {name: nn.Linear(WIDTH, WIDTH) for name in ("first", "second", "third")}
    bare = {name: nn.Parameter(torch.rand(WIDTH) + 0.5) for name in ("gain", "weight", "bias")}
    return Written(forward, **linear, **bare, head=nn.Linear(WIDTH, 5))


def reads_attributes() -> nn.Module:
    """Return a forward that reads the widths and the type of its layers."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        x = m.first(x.to(m.first.weight.dtype)).relu()
        x = m.second(x.view(-1, m.first.out_channels, *x.shape[2:])).relu()
        return m.head(x.mean((2, 3)).view(-1, m.second.out_channels))

    return Written(forward, first=conv(3, 16), second=conv(16, 32), head=nn.Linear(32, 5))


def two_inputs() -> nn.Module:
    """Return a picture and numbers, joined before the last layers."""
    return Written(
        lambda m, x: m.head(torch.cat([m.second(m.first(x[0]).relu()).relu().mean((2, 3)), m.numbers(x[1])], 1).relu()),
        first=conv(3, 16), second=conv(16, 32), numbers=nn.Linear(2, 8), head=nn.Linear(40, 5),
    )  # fmt: skip


def several_outputs() -> nn.Module:
    """Return two heads on one trunk, in a dict."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        x = m.second(m.first(x).relu()).relu()
        return {"map": m.map(x), "classes": m.classes(x.mean((2, 3)))}

    return Written(
        forward, first=conv(3, 16), second=conv(16, 16), map=conv(16, 4, 1), classes=nn.Linear(16, 5)
    )  # fmt: skip


def recurrent() -> nn.Module:
    """Return two layers of LSTM in both directions, then a GRU."""
    lstm = nn.LSTM(WIDTH, 16, num_layers=2, bidirectional=True, batch_first=True)
    return Written(
        lambda m, x: m.head(m.gru(m.lstm(m.embed(x))[0])[1][-1]),
        embed=nn.Linear(WIDTH, WIDTH), lstm=lstm, gru=nn.GRU(32, 24, batch_first=True), head=nn.Linear(24, 5),
    )  # fmt: skip


def recurrent_cell() -> nn.Module:
    """Return a cell that the forward calls step by step."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        state = x.new_zeros(len(x), 24)
        for step in m.embed(x).unbind(1):
            state = m.cell(step, state)
        return m.head(state)

    return Written(
        forward, embed=nn.Linear(WIDTH, WIDTH), cell=nn.GRUCell(WIDTH, 24), head=nn.Linear(24, 5)
    )  # fmt: skip


def normed_weights() -> nn.Module:
    """Return weights that torch computes in every pass."""
    return nn.Sequential(
        parametrizations.weight_norm(conv(3, 16)), nn.ReLU(),
        parametrizations.spectral_norm(conv(16, 16)), nn.ReLU(), conv(16, 4),
    )  # fmt: skip


class Standardized(nn.Conv2d):
    """A convolution whose own forward standardizes its weight, and pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the padded input."""
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(
            F.pad(x, (0, 1, 0, 1)), weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), None, self.stride
        )


def standardized() -> nn.Module:
    """Return two standardized convolutions."""
    return nn.Sequential(
        Standardized(3, 16, 3, 2, bias=False), nn.ReLU(), Standardized(16, 24, 3, 2, bias=False), nn.ReLU(), conv(24, 4)
    )


def other_norms() -> nn.Module:
    """Return frozen and synchronized BatchNorm, GroupNorm and InstanceNorm, in 16 bits."""
    return nn.Sequential(
        conv(3, 16), FrozenBatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.SyncBatchNorm(16), nn.ReLU(),
        conv(16, 16), nn.GroupNorm(4, 16), nn.ReLU(), conv(16, 8), nn.InstanceNorm2d(8, affine=True), conv(8, 4),
    ).to(torch.bfloat16)  # fmt: skip


def kernels_alone() -> nn.Module:
    """Return depthwise convolutions with one and several kernels for a channel, transposed ones, and grouped ones."""
    return nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 16, groups=8), nn.ReLU(), conv(16, 16, groups=16), conv(16, 16, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, 16, 2, stride=2, groups=16), conv(16, 16, groups=4), nn.ReLU(), conv(16, 4, 1),
    )  # fmt: skip


def shuffled() -> nn.Module:
    """Return chunks that take different paths, joined and shuffled."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        left, right = m.first(x).relu().chunk(2, 1)
        x = torch.cat([left, m.right(right).relu()], 1)
        x = x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return m.head(m.last(x).relu())

    return Written(forward, first=conv(3, 16), right=conv(8, 8), last=conv(16, 16), head=conv(16, 4, 1))


def u_shape() -> nn.Module:
    """Return a way down and up again, with a concatenation, a squeeze and excitation, and a resize."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        high = m.down(x).relu()
        low = m.deep(F.max_pool2d(high, 2)).relu()
        low = low * m.gate(low.mean((2, 3), keepdim=True)).sigmoid()
        up = torch.cat([m.up(low), high, F.interpolate(low, scale_factor=2.0, mode="bilinear")], 1)
        return m.head(m.join(up).relu())

    return Written(
        forward, down=conv(3, 8), deep=conv(8, 16), gate=conv(16, 16, 1), up=nn.ConvTranspose2d(16, 8, 2, stride=2),
        join=conv(32, 8), head=conv(8, 4, 1),
    )  # fmt: skip


def other_operators() -> nn.Module:
    """Return a bilinear layer, einsum and a deformable convolution, whose work is counted, but not compressed."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        x = m.deform(m.first(x).relu(), m.offsets(x)).relu().mean((2, 3))
        return m.head(torch.einsum("bc,cd->bd", m.pair(x, x), m.mix).relu())

    return Written(
        forward, first=conv(3, 8), offsets=conv(3, 18), deform=DeformConv2d(8, 16, 3, padding=1),
        pair=nn.Bilinear(16, 16, 12), mix=nn.Parameter(torch.randn(12, 12)), head=nn.Linear(12, 5),
    )  # fmt: skip


def notes_in_the_forward() -> nn.Module:
    """Return a forward that keeps what it saw, and has a branch for training alone."""

    def forward(m: Any, x: Tensor) -> Any:  # noqa: ANN401
        m.features = m.first(x).relu()
        if m.training:
            m.extra = m.aside(m.features)
        return m.head(m.second(m.features).relu().mean((2, 3)))

    return Written(
        forward, first=conv(3, 16), aside=conv(16, 4), second=conv(16, 16), head=nn.Linear(16, 5)
    )  # fmt: skip


STRUCTURES: Mapping[str, Structure] = {
    **{one.__name__: Structure(one, frames) for one in (
        heads_by_size, heads_of_the_stream, grouped_queries, norms_by_hand, recurrent, recurrent_cell,
    )},
    "torch_transformer": Structure(torch_transformer, words),
    "two_inputs": Structure(two_inputs, picture_and_numbers),
    **{one.__name__: Structure(one, images) for one in (
        reads_attributes, several_outputs, normed_weights, standardized, other_norms, kernels_alone, shuffled, u_shape,
        other_operators, notes_in_the_forward,
    )},
}  # fmt: skip
