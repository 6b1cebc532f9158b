"""Networks as users write them, each with one difficulty, small enough to be compressed in a second."""

from __future__ import annotations

from collections import namedtuple
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

CLASSES = 5


class UserNet(nn.Module):
    """A network with the shape of one input; the input consists of tokens if there is a vocabulary."""

    shape: ClassVar[tuple[int, ...]] = (3, 12, 12)
    vocabulary: ClassVar[int] = 0


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, a BatchNorm and an in-place ReLU, as most people write it."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Classic(UserNet):
    """A sequence of blocks, dropout, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_block(3, 16), nn.MaxPool2d(2), conv_block(16, 32), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(32 * 9, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.head(self.features(x)), dim=1)


class Reused(UserNet):
    """A block that is called twice, and a block with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_block(3, 16)
        self.block = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1))
        self.named = self.called = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        x = x + self.named(F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3))
        x = x + self.called(x)
        return self.head((x + self.block(x)).mean((2, 3)))  # type: ignore[no-any-return]


class ByHand(UserNet):
    """Bare parameters that are passed to functions, between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.kernel_OIHW = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)
        self.shift_O = nn.Parameter(torch.zeros(16))
        self.last = nn.Conv2d(16, 24, 3)
        self.mid = nn.Conv2d(24, 24, 3)
        self.weight_OI = nn.Parameter(torch.randn(CLASSES, 24) / 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(F.relu(self.stem(x)), self.kernel_OIHW, self.shift_O, padding=1))
        x = F.adaptive_avg_pool2d(F.relu(self.mid(F.relu(self.last(x)))), 1)
        return F.linear(x.flatten(1), self.weight_OI)


Outputs = namedtuple("Outputs", ("logits", "aux_logits"))  # noqa: PYI024 - as torchvision's GoogLeNet does it


class Auxiliary(UserNet):
    """A head that runs only in training; the output is a named tuple then."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_block(3, 16), conv_block(16, 24)
        self.side = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.side_head = nn.Linear(8, CLASSES)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        x = self.first(x)
        logits = self.head(self.second(x).mean((2, 3)))
        return Outputs(logits, self.side_head(self.side(x))) if self.training else logits


class DeepSupervision(UserNet):
    """Two heads; in training both are returned, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({"low": conv_block(3, 16), "high": conv_block(16, 24, stride=2)})
        self.heads = nn.ModuleDict({"low": nn.Linear(16, CLASSES), "high": nn.Linear(24, CLASSES)})

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        outputs = {}
        for name, stage in self.stages.items():
            x = stage(x)
            outputs[name] = self.heads[name](x.mean((2, 3)))
        return outputs if self.training else outputs["high"]


class TiedWeights(UserNet):
    """Two linear layers that share one weight, between others."""

    shape = (24,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(24, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.right.weight = self.left.weight
        self.widen, self.head = nn.Linear(32, 48), nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(F.relu(self.widen(F.gelu(self.left(x)) + F.gelu(self.right(x)))))  # type: ignore[no-any-return]


class Gated(UserNet):
    """Gates from halves of the channels, by chunk, by split and by `F.glu`."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.three, self.head = nn.Conv2d(16, 48, 1), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.one(x).chunk(2, dim=1)
        left, right = torch.split(self.two(value * torch.sigmoid(gate)), 16, dim=1)
        return self.head(F.glu(self.three(torch.tanh(left) * right), dim=1).mean((-2, -1)))  # type: ignore[no-any-return]


class Shuffled(UserNet):
    """ShuffleNet's unit: half of the channels pass unchanged, half are transformed, then a reshape shuffles both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_block(3, 32)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16),
                          nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), nn.ReLU()) for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, branch(right)], 1)
            b, c, h, w = x.size()
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.head(x.mean([2, 3]))  # type: ignore[no-any-return]


class ZeroShortcut(UserNet):
    """The parameter-free shortcut of He et al. 2015: strided pixels, padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_block(3, 16)
        self.conv1, self.bn1 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = x[:, :, ::2, ::2]
        short = torch.cat([short, torch.zeros_like(short)], dim=1)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x += short
        return self.head(F.relu_(x).flatten(2).mean(2))  # type: ignore[no-any-return]


class Mobile(UserNet):
    """Inverted residuals with squeeze-and-excitation by linear layers, hard activations, a printed line."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(48, 48, 3, 1, 1, groups=48, bias=False), nn.BatchNorm2d(48))
        self.squeeze = nn.Sequential(nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 48), nn.Hardsigmoid())
        self.project = nn.Sequential(nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        print("forward of", tuple(x.shape))  # noqa: T201 - as its author left it
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        b, c, _, _ = y.size()
        y = F.hardswish(y * self.squeeze(F.adaptive_avg_pool2d(y, 1).view(b, c)).view(b, c, 1, 1).expand_as(y))
        return self.head((x + self.project(y)).mean((2, 3)))  # type: ignore[no-any-return]


class VisionTransformer(UserNet):
    """Patches, a class token, learned positions, attention written by hand and by torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.randn(1, 10, 32) / 9)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(32), nn.LayerNorm(32), nn.LayerNorm(32)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.out, self.qkv, self.merge = nn.Linear(32, 32), nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32))
        self.head = nn.Linear(32, CLASSES)

    def by_hand(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (layer(x).view(b, n, 4, c // 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) / (c // 4) ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))  # type: ignore[no-any-return]

    def fused(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = x + self.by_hand(self.norm1(x))
        x = x + self.fused(self.norm2(x))
        x = x + self.mlp(self.norm3(x))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class ChannelsLast(UserNet):
    """ConvNeXt's block: depthwise, LayerNorm and linear layers with channels last, and a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 2, 2)
        self.mix = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm, self.wide, self.thin = nn.LayerNorm(32, eps=1e-6), nn.Linear(32, 64), nn.Linear(64, 32)
        self.gamma = nn.Parameter(0.5 * torch.ones(32))
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.mix(x).permute(0, 2, 3, 1)
        x = x + (self.gamma * self.thin(F.gelu(self.wide(self.norm(y))))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class OtherNorms(UserNet):
    """GroupNorm, InstanceNorm with weights, PReLU with a slope for each channel, and a concatenated ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1, self.act1 = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.PReLU(16)
        self.two, self.norm2 = nn.Conv2d(16, 24, 3, padding=1), nn.InstanceNorm2d(24, affine=True)
        self.three, self.norm3, self.act3 = nn.Conv2d(48, 16, 1), nn.BatchNorm2d(16, affine=False), nn.PReLU()
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.two(self.act1(self.norm1(self.one(x)))))
        x = self.three(F.relu(torch.cat((x, -x), 1)))
        return self.head(self.act3(self.norm3(x)).amax((2, 3)))  # type: ignore[no-any-return]


class Autoencoder(UserNet):
    """Strided convolutions, then transposed ones and a pixel shuffle; the output is an image."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.LeakyReLU(0.1))
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 24, 2, 2), nn.BatchNorm2d(24), nn.ReLU())
        self.refine = nn.Conv2d(24, 32, 3, padding=1)
        self.shuffle, self.image = nn.PixelShuffle(2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.image(self.shuffle(self.refine(self.up(self.down(x))))))


class UNet(UserNet):
    """Skip connections by concatenation, upsampled to the size of the other side; the output is a map of classes."""

    shape = (3, 10, 14)

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_block(3, 8), conv_block(8, 16), conv_block(16, 24)])
        self.up = nn.ModuleList([conv_block(24 + 16, 16), conv_block(16 + 8, 8)])
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            if x.shape[-1] != skip.shape[-1]:
                raise ValueError("sizes differ")
            x = stage(torch.cat([skip, x], dim=1))
        return self.head(x)  # type: ignore[no-any-return]


class DenselyConnected(UserNet):
    """Every layer reads all earlier ones, through a BatchNorm that precedes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 8, 3, padding=1, bias=False)) for n in (16, 24)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 20, 1, bias=False))
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.relu(self.transition(torch.cat(features, 1))).mean((2, 3)))  # type: ignore[no-any-return]


class Waveform(UserNet):
    """Convolutions along time with a long first kernel, as M5 (Dai et al. 2016)."""

    shape = (1, 400)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 40, stride=4), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4),
            nn.Conv1d(16, 24, 3, padding="same", dilation=2), nn.BatchNorm1d(24), nn.ReLU(), nn.AvgPool1d(2),
        )  # fmt: skip
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
        return F.log_softmax(self.head(x), dim=2).squeeze(1)


class Clip(UserNet):
    """Convolutions over space and time."""

    shape = (3, 4, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv3d(3, 12, 3, padding=1), nn.BatchNorm3d(12)
        self.two, self.head = nn.Conv3d(12, 16, (1, 3, 3), (1, 2, 2)), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.one(x))), (1, 2, 2))
        return self.head(F.adaptive_avg_pool3d(F.relu(self.two(x)), 1).flatten(1))  # type: ignore[no-any-return]


class Paddings(UserNet):
    """All padding modes, and dilated kernels whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 16, 3, padding="same", dilation=2)
        self.reflect = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.circular = nn.Conv2d(16, 16, 3, padding=2, dilation=2, padding_mode="circular")
        self.pad, self.valid = nn.ReplicationPad2d((1, 1, 0, 2)), nn.Conv2d(16, 20, (3, 3), padding="valid")
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.same(x))
        x = F.silu(self.reflect(x) + self.circular(x))
        return self.head(F.pad(self.valid(self.pad(x)), (1, 0)).mean((2, 3)))  # type: ignore[no-any-return]


class Same(nn.Conv2d):
    """A convolution that pads its input as TensorFlow does, anew in every call, as timm's `Conv2dSame`."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride, dilation in zip(
            reversed(x.shape), *map(reversed, (self.kernel_size, self.stride, self.dilation)), strict=False
        ):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StaticSame(nn.Conv2d):
    """A convolution with a padding for one size of its input, as EfficientNet's in efficientnet-lite-pytorch."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, pad: tuple[int, ...]) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.static_padding = nn.ConstantPad2d(pad, 0.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Ported(UserNet):
    """An inverted block of a network that was ported from TensorFlow; its convolutions pad their own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = Same(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.wide, self.wide_norm = Same(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise, self.depthwise_norm = StaticSame(24, 24, 5, 1, 24, (2, 2, 2, 2)), nn.BatchNorm2d(24)
        self.narrow, self.narrow_norm = Same(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.down, self.down_norm = StaticSame(8, 16, 3, 2, 1, (0, 1, 0, 1)), nn.BatchNorm2d(16)
        self.even = Same(16, 16, (1, 3), dilation=2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem_norm(self.stem(x)))
        wide = F.relu6(self.wide_norm(self.wide(x)))
        x = x + self.narrow_norm(self.narrow(F.relu6(self.depthwise_norm(self.depthwise(wide)))))
        x = F.relu(self.even(F.relu6(self.down_norm(self.down(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Einsum(UserNet):
    """Tokens and channels mixed in turn; attention over the tokens by `einsum`."""

    shape = (9, 24)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(24, 32), nn.LayerNorm(32)
        self.tokens = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 9))
        self.query, self.key, self.value = nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(32, 32)
        self.head = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        weights = torch.einsum("bnc,bmc->bnm", self.query(x), self.key(x)).softmax(-1)
        return self.head(torch.einsum("bnm,bmc->bnc", weights, self.value(x)).mean(1))  # type: ignore[no-any-return]


class Reparametrized(UserNet):
    """Weights that are computed in every forward pass, between plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.one = weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.two = spectral_norm(nn.Conv2d(16, 16, 3, padding=1))
        self.three = nn.Conv2d(16, 24, 3, stride=2)
        self.four, self.head = nn.Conv2d(24, 16, 1), weight_norm(nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.four(F.relu(self.three(F.relu(self.two(F.relu(self.one(x))))))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Recurrent(UserNet):
    """Convolutions along time, a bidirectional GRU and an LSTM, and a classifier of the last step."""

    shape = (6, 24)

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(6, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1)
        self.gru = nn.GRU(16, 8, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.head = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.two(F.relu(self.one(x)))).transpose(1, 2)
        x, _ = self.lstm(self.gru(x)[0])
        return self.head(x[:, -1])  # type: ignore[no-any-return]


class Text(UserNet):
    """Tokens and learned positions; parallel convolutions of three lengths, as Kim 2014."""

    shape = (12,)
    vocabulary = 40

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(40, 16), nn.Parameter(torch.randn(1, 12, 16))
        self.register_buffer("steps", torch.arange(12), persistent=False)
        self.where = nn.Embedding(12, 16)
        self.convs = nn.ModuleList(nn.Conv1d(16, 8, length) for length in (2, 3, 4))
        self.hidden, self.head = nn.Linear(24, 32), nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions[:, : tokens.shape[1]] + self.where(self.steps[: tokens.shape[1]])  # type: ignore[index]
        x = x.permute(0, 2, 1)
        x = torch.cat([F.relu(conv(x)).max(dim=2).values for conv in self.convs], dim=1)
        return self.head(F.dropout(F.relu(self.hidden(x)), 0.2, self.training))  # type: ignore[no-any-return]


class TorchTransformer(UserNet):
    """torch's own encoder on patches of a signal."""

    shape = (4, 32)

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv1d(4, 24, 4, 4)
        layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, dropout=0.0, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch(x).transpose(1, 2)).mean(1))  # type: ignore[no-any-return]


class FlowControl(UserNet):
    """Conditions on shapes, a loop over a list of modules, windows that are moved into the batch."""

    shape = (3, 8, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.convs = conv_block(3, 16), nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.inside, self.head = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.size(1) != 3:
            raise ValueError(f"expected (B, 3, H, W), got {tuple(x.shape)}")
        x = self.stem(x)
        for index, conv in enumerate(self.convs):
            x = F.relu(conv(x)) + x if index % 2 == 0 else F.relu(conv(x))
            if min(x.shape[2:]) > 4:
                x = F.avg_pool2d(x, 2)
        b, c, h, w = x.shape
        windows = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        windows = F.relu(self.inside(windows))
        return self.head(windows.reshape(b, -1, c).mean(1))  # type: ignore[no-any-return]


NETWORKS: tuple[type[UserNet], ...] = (
    Classic, Reused, ByHand, Auxiliary, DeepSupervision, TiedWeights, Gated, Shuffled, ZeroShortcut, Mobile,
    VisionTransformer, ChannelsLast, OtherNorms, Autoencoder, UNet, DenselyConnected, Waveform, Clip, Paddings, Ported,
    Einsum, Reparametrized, Recurrent, Text, TorchTransformer, FlowControl,
)  # fmt: skip


def examples(net: type[UserNet], count: int = 16) -> Tensor:
    """Return inputs of a network from a fixed seed."""
    generator = torch.Generator().manual_seed(2)
    if net.vocabulary:
        return torch.randint(net.vocabulary, (count, *net.shape), generator=generator)
    return torch.randn(count, *net.shape, generator=generator)
