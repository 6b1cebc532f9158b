"""Small networks, one for each difficulty, with weights and statistics for which wrong code gives wrong results."""

from __future__ import annotations

import functools
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

CLASSES = 5  # outputs of every network
N = TypeVar("N", bound=nn.Module)
AFFINE_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def run(x: Tensor, *modules: nn.Module) -> Tensor:
    """Run the modules one after the other."""
    for module in modules:
        x = module(x)
    return x


class Net(nn.Module):
    """A network that knows the shape of its inputs, without the batch dimension."""

    shape: ClassVar[tuple[int, ...]] = (3, 8, 8)


class Plain(Net):
    """Convolutions, and a linear head on flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return run(self.pool(x).flatten(1), self.head)


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down: nn.Module = nn.Identity()
        if (inputs, stride) != (outputs, 1):
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + run(x, self.down))


class Residual(Net):
    """Blocks with and without a convolution in the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.block1 = Block(8, 8, 1)
        self.block2 = Block(8, 12, 2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(F.relu(self.bn(self.stem(x)))))
        return run(x.mean((2, 3)), self.head)


class Dense(Net):
    """Every layer reads the concatenated outputs of all earlier layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.grow1 = nn.Conv2d(6, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(10)
        self.grow2 = nn.Conv2d(10, 4, 3, padding=1)
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.grow2(F.relu(self.bn2(x)))], 1)
        return run(F.relu(x).mean((2, 3)), self.head)


class Separable(Net):
    """Depthwise and pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 12, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn1(self.depthwise(x)))
        return run(F.relu(self.bn2(self.pointwise(x))).mean((2, 3)), self.head)


class Straight(Net):
    """Layers whose outputs have the shape of their inputs, without shortcuts, as in MobileNetV1 and VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wise, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.point, self.bn2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.wider = nn.Conv2d(8, 12, 3, 2, 1)
        self.turn, self.bn3 = nn.Conv2d(12, 12, 3, padding="same", groups=12, bias=False), nn.BatchNorm2d(12)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn2(self.point(F.relu(self.bn1(self.wise(x))))))
        x = F.relu(self.wider(F.relu(self.plain(x), inplace=True)))
        return run(self.drop(F.relu(self.bn3(self.turn(x)))).mean((2, 3)), self.head)


class Grouped(Net):
    """A convolution of two groups between dense convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.grouped(F.relu(self.stem(x)))))
        return run(F.relu(self.last(x)).mean((2, 3)), self.head)


class Sequence(Net):
    """Convolutions along one dimension."""

    shape = (4, 16)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 8, 5, padding=2, bias=False)
        self.bn = nn.BatchNorm1d(8)
        self.second = nn.Conv1d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return run(F.relu(self.second(F.relu(self.bn(self.first(x))))).mean(2), self.head)


class Mlp(Net):
    """Linear layers with BatchNorm between them."""

    shape = (10,)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 16)
        self.bn = nn.BatchNorm1d(16)
        self.second = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return run(F.relu(self.second(F.relu(self.bn(self.first(x))))), self.head)


class Padded(Net):
    """A shortcut without parameters: every other pixel, padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return run(F.relu(y + short).mean((2, 3)), self.head)


class SqueezeExcite(Net):
    """Channels that are multiplied by the output of a side branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return run(F.relu(self.last(x)).mean((2, 3)), self.head)


class Normed(Net):
    """GroupNorm and LayerNorm, and a PReLU with a slope for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.slopes = nn.PReLU(8)
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.layer_norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.slopes(self.group_norm(self.stem(x)))).mean((2, 3))
        return run(F.relu(self.hidden(self.layer_norm(x))), self.head)


class Wide(Net):
    """Enough channels for a Tucker-2 decomposition."""

    shape = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return run(F.relu(self.bn(self.conv(F.relu(self.stem(x))))).mean((2, 3)), self.head)


NETWORKS: tuple[type[Net], ...] = (
    Plain, Residual, Dense, Separable, Grouped, Sequence, Mlp, Padded, SqueezeExcite, Normed,
)  # fmt: skip


_TEACHERS: dict[type[Net], Net] = {}


def scrambled(net: N) -> N:
    """Randomize statistics, gains (of both signs) and shifts of norms, and slopes of PReLUs; set evaluation mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, AFFINE_NORMS) and module.weight is not None:
            signs = torch.where(torch.rand(module.weight.shape) < 0.3, -1.0, 1.0)
            module.weight.data = signs * torch.empty_like(signs).uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(0.1, 0.5)
    return net.eval()


def teacher(kind: type[Net]) -> Net:
    """Return the shared network of this class, which must not be changed."""
    if kind not in _TEACHERS:
        torch.manual_seed(1)
        _TEACHERS[kind] = scrambled(kind())
    return _TEACHERS[kind]


@functools.cache
def example(net: Net, count: int = 16) -> Tensor:
    """Return inputs for a network, the same at every call."""
    return torch.randn(count, *net.shape, generator=torch.Generator().manual_seed(2))
