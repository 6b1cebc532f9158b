"""Write one layer as a product of thinner ones, fitted to what the layer sees.

Legend: `O` output channels, `I` input channels, `R` rank, `K` kernel positions, `D` = I*K, `H W` the kernel's height
and width. All three are *activation-whitened*: the error that is smallest is that of the layer's output on the
calibration inputs, not that of its weights (Wang et al. 2024, SVD-LLM, arXiv:2403.07378, §3.1).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from spaces.anatomy import Layer
    from spaces.statistics import Moments

WIDE = 32  # channels from which Tucker-2 pays; narrower convolutions take the SVD


class Decomposition(Protocol):
    """How a layer of full rank becomes thinner ones."""

    def macs(self, layer: Layer, fraction: float) -> int:
        """Return the multiply-adds a position of the layer's output of what `split` would return."""
        ...

    def split(self, module: nn.Module, layer: Layer, seen: Moments, fraction: float) -> nn.Sequential:
        """Return the thinner layers; `module` is not changed."""
        ...


@dataclass(frozen=True, slots=True)
class Svd:
    """Linear and 1x1: W = U V; a k x k kernel: k x k to R channels, then 1x1 (Zhang et al. 2016, arXiv:1505.06798)."""

    def macs(self, layer: Layer, fraction: float) -> int:
        """Return R * (D + O)."""
        columns = layer.inputs * math.prod(layer.kernel)
        return rank_of(min(layer.outputs, columns), fraction) * (columns + layer.outputs)

    def split(self, module: nn.Module, layer: Layer, seen: Moments, fraction: float) -> nn.Sequential:
        """Return `reduce` (the kernel, to R channels) and `expand` (1x1, with the bias)."""
        weight = module.get_parameter("weight").detach()
        weight_OIK = weight.reshape(layer.outputs, layer.inputs, -1)
        root = _root(seen.second_DD)
        if seen.block > 1 or weight_OIK.shape[2] == 1:
            white_OD = weight_OIK.flatten(1) @ root
        else:
            white_OD = torch.einsum("oik,ij->ojk", weight_OIK, root).flatten(1)
        left_OR, right_RD = _best(white_OD, rank_of(min(white_OD.shape), fraction))
        if seen.block > 1 or weight_OIK.shape[2] == 1:
            right_RD = _unwhiten(right_RD, root)
        else:
            right_RIK = right_RD.reshape(len(right_RD), layer.inputs, -1)
            right_RD = _unwhiten(right_RIK.transpose(1, 2), root).transpose(1, 2)
        reduce = _like(module, right_RD.reshape(-1, *weight.shape[1:]))
        return _chain(reduce=reduce, expand=_pointwise(module, left_OR, bias=True))


@dataclass(frozen=True, slots=True)
class SpatialSvd:
    """A k x k kernel as k x 1 and 1 x k (Jaderberg et al. 2014, arXiv:1405.3866, §2.2, scheme 2); else as `Svd`."""

    def macs(self, layer: Layer, fraction: float) -> int:
        """Return R * (I*H*stride + O*W): the first kernel runs at every column."""
        if not _is_plane(layer):
            return Svd().macs(layer, fraction)
        tall, wide = layer.inputs * layer.kernel[0], layer.outputs * layer.kernel[1]
        return rank_of(min(tall, wide), fraction) * (tall * layer.stride[1] + wide)

    def split(self, module: nn.Module, layer: Layer, seen: Moments, fraction: float) -> nn.Sequential:
        """Return `reduce` (k x 1) and `expand` (1 x k, with the bias)."""
        if not _is_plane(layer):
            return Svd().split(module, layer, seen, fraction)
        assert isinstance(module, nn.Conv2d)
        height, width = layer.kernel
        root = _root(seen.channels_II)
        white = torch.einsum("oihw,ij->jhow", module.weight.detach(), root)
        matrix = white.reshape(layer.inputs * height, layer.outputs * width)
        tall, wide = _best(matrix, rank_of(min(matrix.shape), fraction))
        first_RHI = _unwhiten(tall.T.reshape(-1, layer.inputs, height).transpose(1, 2), root)
        second_ORW = wide.reshape(-1, layer.outputs, width).transpose(0, 1)
        reduce = _like(module, first_RHI.transpose(1, 2)[..., None], along=0)
        return _chain(reduce=reduce, expand=_like(module, second_ORW[:, :, None, :], along=1, bias=True))


@dataclass(frozen=True, slots=True)
class Tucker2:
    """1x1, k x k on fewer channels, 1x1 (Kim et al. 2016, arXiv:1511.06530, §3); narrow and 1x1 layers as `Svd`.

    The fraction is that of the output and of the input channels alike.
    """

    def macs(self, layer: Layer, fraction: float) -> int:
        """Return I*R1*stride² + R1*R2*K + R2*O."""
        if not _is_wide(layer):
            return Svd().macs(layer, fraction)
        outer, inner = rank_of(layer.outputs, fraction), rank_of(layer.inputs, fraction)
        entry = layer.inputs * inner * math.prod(layer.stride)
        return entry + inner * outer * math.prod(layer.kernel) + outer * layer.outputs

    def split(self, module: nn.Module, layer: Layer, seen: Moments, fraction: float) -> nn.Sequential:
        """Return `reduce` (1x1), `core` (k x k) and `expand` (1x1, with the bias)."""
        if not _is_wide(layer):
            return Svd().split(module, layer, seen, fraction)
        weight = module.get_parameter("weight").detach()
        weight_OIK = weight.reshape(layer.outputs, layer.inputs, -1)
        root = _root(seen.channels_II)
        white_OIK = torch.einsum("oik,ij->ojk", weight_OIK, root)
        outer = torch.linalg.svd(white_OIK.flatten(1), full_matrices=False)[0]
        inner = torch.linalg.svd(white_OIK.transpose(0, 1).flatten(1), full_matrices=False)[0]
        outer = outer[:, : rank_of(layer.outputs, fraction)]
        inner = inner[:, : rank_of(layer.inputs, fraction)]
        core = torch.einsum("oik,or,is->rsk", white_OIK, outer, inner)
        core = core.reshape(*core.shape[:2], *weight.shape[2:])
        reduce = _pointwise(module, _unwhiten(inner.T, root))
        return _chain(reduce=reduce, core=_like(module, core), expand=_pointwise(module, outer, bias=True))


def rank_of(full: int, fraction: float) -> int:
    """Return the rank that is this fraction of the full rank, at least 1."""
    return max(1, round(fraction * full))


def _is_plane(layer: Layer) -> bool:
    return len(layer.kernel) == 2 and min(layer.kernel) > 1  # noqa: PLR2004


def _is_wide(layer: Layer) -> bool:
    return math.prod(layer.kernel) > 1 and min(layer.outputs, layer.inputs) >= WIDE


def _root(second: Tensor) -> Tensor:
    """Return the Cholesky factor L of the second moment, L L' = H; H is damped, so it is positive definite."""
    factor: Tensor = torch.linalg.cholesky(second.double())
    return factor.float()


def _unwhiten(rows: Tensor, root: Tensor) -> Tensor:
    """Return rows L^-1, over the last dimension."""
    solved: Tensor = torch.linalg.solve_triangular(root, rows, upper=False, left=False)
    return solved


def _best(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the two factors of the best approximation of that rank, the singular values shared evenly.

    Evenly, so that both factors take gradient steps of a like size in the training that follows.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    share = values[:rank].sqrt()
    return left[:, :rank] * share, share[:, None] * right[:rank]


def _chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _fill(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.contiguous())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return layer


def _like(module: nn.Module, weight: Tensor, *, along: int | None = None, bias: bool = False) -> nn.Module:
    """Return a layer with the geometry of `module` (along one spatial dimension only, if given) and this weight."""
    kept: Tensor | None = module.bias if bias else None  # type: ignore[assignment]
    if isinstance(module, nn.Linear):
        return _fill(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, kept)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    def only(values: object, neutral: int) -> object:
        if along is None or isinstance(values, str):
            return values
        assert isinstance(values, tuple)
        return tuple(value if axis == along else neutral for axis, value in enumerate(values))

    new = type(module)(
        weight.shape[1],
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        stride=only(module.stride, 1),  # type: ignore[arg-type]
        padding=only(module.padding, 0),  # type: ignore[arg-type]
        dilation=only(module.dilation, 1),  # type: ignore[arg-type]
        padding_mode=module.padding_mode,
        device="meta",
    )
    return _fill(new, weight, kept)


def _pointwise(module: nn.Module, weight_OI: Tensor, *, bias: bool = False) -> nn.Module:
    """Return a linear layer or a 1x1 convolution of the kind of `module`."""
    kept: Tensor | None = module.bias if bias else None  # type: ignore[assignment]
    if isinstance(module, nn.Linear):
        return _like(module, weight_OI, bias=bias)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    shape = (*weight_OI.shape, *[1] * len(module.kernel_size))
    new = type(module)(weight_OI.shape[1], weight_OI.shape[0], 1, device="meta")
    return _fill(new, weight_OI.reshape(shape), kept)
