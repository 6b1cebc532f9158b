"""Networks that are difficult to export."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.testing.networks import CLASSES, Net, run

WIDTH, WIDE = 32, 64  # channels


class Attentive(Net):
    """A network on tokens: an embedding, one attention block with its shortcut, and a head."""

    shape: ClassVar[tuple[int, ...]] = (6, 10)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(10, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        normal = self.norm(x)
        return run((x + self.attention(normal, normal, normal, need_weights=False)[0]).mean(1), self.head)


class Row(nn.Module):
    """Three layers of one kind with ReLUs between them, wide enough that weights dominate the size of the file."""

    def __init__(self, kind: str, groups: int) -> None:
        super().__init__()
        if kind == "Linear":
            self.shape: tuple[int, ...] = (WIDTH,)
            layers = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
        else:
            dimensions = int(kind[-2])
            self.shape = (WIDTH, *[4] * dimensions)
            layers = [getattr(nn, kind)(WIDTH, WIDTH, 3, padding=1, groups=groups) for _ in range(3)]
        self.row = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.row(x)  # type: ignore[no-any-return]


class Bottlenecks(Net):
    """Two inverted residual blocks with no operator between their sums, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
                nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return run(x.mean((2, 3)), self.head)


class Pooled(Net):
    """Pooling and dropout between a convolution and its ReLU, which converters move or drop."""

    shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.drop = nn.Dropout2d()
        self.hidden, self.head = nn.Linear(320, 50), nn.Linear(50, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 2))
        return run(F.dropout(F.relu(self.hidden(x.flatten(1))), training=self.training), self.head)


class Shortcut(Net):
    """Convolutions of 64 channels, the last two in a residual block, and a linear head."""

    shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, WIDE, 3, padding=1, bias=False), nn.BatchNorm2d(WIDE)
        self.first, self.first_norm = nn.Conv2d(WIDE, WIDE, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDE)
        self.second, self.second_norm = nn.Conv2d(WIDE, WIDE, 3, padding=1, bias=False), nn.BatchNorm2d(WIDE)
        self.head = nn.Linear(4 * WIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.first_norm(self.first(x)))
        x = F.relu(x + self.second_norm(self.second(x)))
        return run(F.max_pool2d(x, 2).flatten(1), self.head)


class Pair(nn.Module):
    """A network with two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x - 1


class Shared(nn.Module):
    """Gives a map of features out that is also read inside, in the order of its dimensions and for its means."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return maps (B, 4, 8, 6), the same flattened, and outputs (B, 6) of images (B, 3, 8, 6)."""
        found = self.layer(x)
        return found, found.flatten(1), self.head(found.mean((2, 3)))


class Bessel(nn.Module):
    """A network with an operator that no runtime supports."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Layers around a concatenation of tensors of unlike ranges, an average of windows, and a sum with a constant.

    One channel of the first layer is dead: its weights are zero, and its bias is not.
    """

    shape: ClassVar[tuple[int, int, int]] = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.third = nn.Conv2d(16, 8, 3, padding=1)
        self.shift = nn.Parameter(torch.randn(8, 4, 4))
        self.head = nn.Linear(8 * 16, 6)
        with torch.no_grad():
            self.first.weight[2], self.first.bias[2] = 0.0, 2.0  # type: ignore[index]
            self.second.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (B, 6) for inputs of shape (B, 3, 8, 8)."""
        joined = torch.cat([F.relu(self.first(x)), self.second(x)], 1)
        averaged = F.avg_pool2d(self.third(joined), 2) + self.shift
        return self.head(averaged.flatten(1))  # type: ignore[no-any-return]
