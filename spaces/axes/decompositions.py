"""Replace one layer by a product of thinner layers, fitted to the inputs of the layer.

Legend: `G` groups of a convolution (1 for other layers), `O` output and `I` input channels of one group, `R` rank,
`K` kernel positions, `D` = I*K, `H W` height and width of the kernel; `A B` rows and columns of any matrix.

All three decompositions are *activation-whitened*: they minimize the error of the layer's output on the calibration
inputs, not the error of its weights (Wang et al. 2024, SVD-LLM, arXiv:2403.07378, §3.1). The groups of a convolution
are split separately, all to the same rank.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from spaces.costs.factors import Factors, rank_of, ranks_of, shapes_of
from spaces.network.cache import cached
from spaces.network.layers import CONVOLUTIONS
from spaces.network.stand_ins import StandIn

if TYPE_CHECKING:
    from spaces.costs.factors import Numbers, Shapes
    from spaces.network.anatomy import Layer
    from spaces.network.statistics import Moments

# channels of a group: convolutions with fewer inputs or outputs are split by SVD, since Tucker-2 saves little on them
TUCKER2_MIN_CHANNELS = 32
NOISE_FLOOR = 1e-12  # share of the largest squared singular value; smaller values are rounding noise


class Decomposition(Protocol):
    """A way to split a layer of full rank into thinner layers; frozen data, since results are cached by it."""

    def __hash__(self) -> int:
        """Return equal hashes for equal decompositions."""
        ...

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return the factors into which `split` splits layers of these shapes; the last one has the bias."""
        ...

    def split(self, module: nn.Module, layer: Layer, seen: Moments | None, fraction: float) -> nn.Sequential:
        """Return the thinner layers; `module` is not changed. Without moments, white inputs are assumed."""
        ...


@dataclass(frozen=True, slots=True)
class Svd:
    """Linear and 1x1: W = U V; a k x k kernel: k x k to R channels, then 1x1 (Zhang et al. 2016, arXiv:1505.06798).

    Where each group has a single output, as in depthwise convolutions, this saves nothing: two-dimensional kernels of
    such layers are split as in `SpatialSvd`.
    """

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return weights of G*R*D and G*R*O, with R a fraction of min(O, D)."""
        return _two_factors(shapes, fraction, spatial=_has_one_output_per_group(shapes))

    def split(self, module: nn.Module, layer: Layer, seen: Moments | None, fraction: float) -> nn.Sequential:
        """Return `reduce` (the kernel, to R channels a group) and `expand` (1x1, with the bias)."""
        if _has_one_output_per_group(shapes_of(layer)):
            return SpatialSvd().split(module, layer, seen, fraction)
        weight_GOIK = _grouped_weight(module, layer)

        def factors() -> tuple[Tensor, Tensor]:
            outputs, inputs, size = weight_GOIK.shape[1:]
            if seen is None or seen.block == size:
                matrix = weight_GOIK.reshape(layer.groups, outputs, 1, inputs * size).permute(0, 2, 3, 1)
                reduce, expand = _truncatable_factors(matrix, seen.second_GDD if seen else None)
                return reduce.reshape(layer.groups, inputs, size, -1).permute(0, 3, 1, 2), expand.transpose(1, 2)
            reduce, expand = _truncatable_factors(weight_GOIK.permute(0, 3, 2, 1), seen.second_GDD)
            return reduce.permute(0, 3, 2, 1), expand.transpose(1, 2)

        reduce_GRIK, expand_GOR = cached(module, ("svd", seen), factors)
        rank = rank_of(reduce_GRIK.shape[1], fraction)
        return _chain(
            module,
            reduce=_layer_like(module, reduce_GRIK[:, :rank]),
            expand=_pointwise(module, expand_GOR[:, :, :rank], bias=True),
        )


@dataclass(frozen=True, slots=True)
class SpatialSvd:
    """k x 1, then 1 x k (Jaderberg et al. 2014, arXiv:1405.3866, §2.2, scheme 2); other kernels as in `Svd`."""

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return weights of G*R*I*H and G*R*O*W, R a fraction of min(I*H, O*W).

        The first kernel is applied at the rows of the output and at every column of the input.
        """
        return _two_factors(shapes, fraction, spatial=shapes.plane)

    def split(self, module: nn.Module, layer: Layer, seen: Moments | None, fraction: float) -> nn.Sequential:
        """Return `reduce` (k x 1) and `expand` (1 x k, with the bias)."""
        if not shapes_of(layer).plane:
            return Svd().split(module, layer, seen, fraction)
        height, width = layer.kernel
        weight_GOIHW = _grouped_weight(module, layer).unflatten(3, (height, width))

        def factors() -> tuple[Tensor, Tensor]:
            matrix = weight_GOIHW.permute(0, 3, 2, 1, 4).flatten(3)
            reduce, expand = _truncatable_factors(matrix, seen.channels_GII if seen else None)
            return reduce.permute(0, 3, 2, 1), expand.unflatten(2, (-1, width)).transpose(1, 2)

        reduce_GRIH, expand_GORW = cached(module, ("spatial svd", seen), factors)
        rank = rank_of(reduce_GRIH.shape[1], fraction)
        return _chain(
            module,
            reduce=_layer_like(module, reduce_GRIH[:, :rank], along=0),
            expand=_layer_like(module, expand_GORW[:, :, :rank], along=1, bias=True),
        )


@dataclass(frozen=True, slots=True)
class Tucker2:
    """1x1, k x k on fewer channels, 1x1 (Kim et al. 2016, arXiv:1511.06530, §3); narrow and 1x1 layers as in `Svd`.

    The same fraction applies to the output and to the input channels.
    """

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return weights of G*I*R1, G*R1*R2*K and G*R2*O; the first kernel is applied at every pixel of the input."""
        wide = _suits_tucker2(shapes)
        if not np.count_nonzero(wide):
            return Svd().factors(shapes, fraction)
        outer, inner = ranks_of(shapes.group_outputs, fraction), ranks_of(shapes.group_inputs, fraction)
        width = shapes.groups * inner
        three = Factors.of(
            (shapes.inputs * inner, width, shapes.reads, 0),
            (width * outer * shapes.area, shapes.groups * outer, shapes.positions, 1),
            (outer * shapes.outputs, shapes.outputs, shapes.positions, 0),
        )
        return three.where(wide, Svd().factors(shapes, fraction))

    def split(self, module: nn.Module, layer: Layer, seen: Moments | None, fraction: float) -> nn.Sequential:
        """Return `reduce` (1x1), `core` (k x k) and `expand` (1x1, with the bias)."""
        if not _suits_tucker2(shapes_of(layer)):
            return Svd().split(module, layer, seen, fraction)
        weight_GOIK = _grouped_weight(module, layer)

        def factors() -> tuple[Tensor, Tensor, Tensor]:
            second = seen.channels_GII if seen else None
            outer = _descending_eigh(_gram(weight_GOIK.permute(0, 3, 2, 1), second))[1]
            root = _cholesky(second, weight_GOIK[:, 0, :, 0])
            plain = _gram(weight_GOIK.permute(0, 3, 1, 2), None)
            inner = _descending_eigh(root.transpose(1, 2) @ plain @ root)[1]
            reduce = torch.linalg.solve_triangular(root, inner.transpose(1, 2), upper=False, left=False)
            core = torch.einsum("goik,gor,gis->grsk", weight_GOIK, outer.float(), (root @ inner).float())
            return reduce.float(), core, outer.float()

        reduce_GRI, core_GRRK, expand_GOR = cached(module, ("tucker", seen), factors)
        outer, inner = (rank_of(size, fraction) for size in core_GRRK.shape[1:3])
        return _chain(
            module,
            reduce=_pointwise(module, reduce_GRI[:, :inner]),
            core=_layer_like(module, core_GRRK[:, :outer, :inner]),
            expand=_pointwise(module, expand_GOR[:, :, :outer], bias=True),
        )


def _two_factors(shapes: Shapes, fraction: Numbers, *, spatial: Numbers) -> Factors:
    """Return the full kernel to fewer channels and a pointwise layer; where `spatial`, an H x 1 and a 1 x W kernel."""
    first, second, applied = shapes.group_inputs * shapes.area, shapes.group_outputs, shapes.positions
    if np.count_nonzero(spatial):
        first = np.where(spatial, shapes.group_inputs * shapes.height, first)
        second = np.where(spatial, shapes.group_outputs * shapes.width, second)
        applied = np.where(spatial, shapes.columns, applied)
    rank = shapes.groups * ranks_of(np.minimum(first, second), fraction)
    return Factors.of(
        (rank * first, rank, applied, 1),
        (rank * second, shapes.outputs, shapes.positions, spatial),
    )


def _has_one_output_per_group(shapes: Shapes) -> Numbers:
    return shapes.plane & (shapes.outputs == shapes.groups)


def _suits_tucker2(shapes: Shapes) -> Numbers:
    return (shapes.area > 1) & (np.minimum(shapes.group_outputs, shapes.group_inputs) >= TUCKER2_MIN_CHANNELS)


def _grouped_weight(module: nn.Module, layer: Layer) -> Tensor:
    """Return the weight, shape (G, O, I, K)."""
    weight = module.get_parameter("weight").detach()
    return weight.reshape(layer.groups, layer.outputs // layer.groups, layer.inputs // layer.groups, -1)


def _gram(matrix_GKAB: Tensor, second_GAA: Tensor | None) -> Tensor:
    """Return sum over k of X_k' H X_k, shape (G, B, B), in double precision."""
    matrix = matrix_GKAB.double()
    white = matrix if second_GAA is None else second_GAA[:, None].double() @ matrix
    return matrix.flatten(1, 2).transpose(1, 2) @ white.flatten(1, 2)


def _cholesky(second_GII: Tensor | None, like: Tensor) -> Tensor:
    """Return the Cholesky factor L of the second moment, L L' = H; H is positive definite because it is damped."""
    if second_GII is None:
        return torch.eye(like.shape[1], dtype=torch.double, device=like.device).expand(len(like), -1, -1)
    factor: Tensor = torch.linalg.cholesky(second_GII.double())
    return factor


def _descending_eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of a Gram matrix, the largest first.

    Singular vectors are computed from the smaller Gram matrix, in a quarter of the time of a singular value
    decomposition; double precision makes up for the digits that squaring loses.
    """
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1), vectors.flip(-1)


def _truncatable_factors(matrix_GKAB: Tensor, second_GAA: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return factors (G, K, A, R) and (G, R, B) whose first R terms are the best approximation of rank R, for every R.

    The error is the sum over k of (X_k - Y_k)' H (X_k - Y_k), with H the second moment. Both factors get the square
    roots of the singular values, so that their gradient steps have similar sizes in the training that follows.
    """
    matrix = matrix_GKAB.double()
    groups, size, rows, columns = matrix.shape
    if columns <= size * rows:
        values, right = _descending_eigh(_gram(matrix, second_GAA))
        share = _root_singular_values(values)
        first = matrix @ (right / share[:, None, :])[:, None]
        return first.float(), (share[:, :, None] * right.transpose(1, 2)).float()
    root = _cholesky(second_GAA, matrix[:, 0, :, 0])
    white = (root.transpose(1, 2)[:, None] @ matrix).flatten(1, 2)
    values, left = _descending_eigh(white @ white.transpose(1, 2))
    share = _root_singular_values(values)
    second = (left / share[:, None, :]).transpose(1, 2) @ white
    shared = (left * share[:, None, :]).reshape(groups, size, rows, -1)
    first = torch.linalg.solve_triangular(root.transpose(1, 2)[:, None], shared, upper=True)
    return first.float(), second.float()


def _root_singular_values(squares: Tensor) -> Tensor:
    """Return the square roots of the singular values, given the squares of the singular values."""
    return squares.clamp_min(squares.amax(1, keepdim=True) * NOISE_FLOOR).clamp_min(NOISE_FLOOR).pow(0.25)


class Factored(StandIn, nn.Sequential):
    """The thinner layers that replace one layer, in order of execution."""

    @property
    def split_into(self) -> int:
        """Number of thinner layers; see `objectives.layers.Factored`."""
        return len(self)


def _chain(module: nn.Module, **layers: nn.Module) -> Factored:
    return Factored(OrderedDict(layers)).stand_for(module, next(reversed(layers)))


def _layer_like(module: nn.Module, weight_GOIK: Tensor, *, along: int | None = None, bias: bool = False) -> nn.Module:
    """Return a layer with this weight and the kernel, stride, padding and dilation of `module`.

    With `along`, these are taken for that spatial dimension only.
    """
    if isinstance(module, nn.Linear):
        return _pointwise(module, weight_GOIK[..., 0], bias=bias)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    def only(values: object, neutral: int) -> object:
        if along is None or isinstance(values, str):
            return values
        assert isinstance(values, tuple)
        return tuple(value if axis == along else neutral for axis, value in enumerate(values))

    groups, outputs, inputs, _ = weight_GOIK.shape
    new = _torch_class(module)(
        groups * inputs,
        groups * outputs,
        only(module.kernel_size, 1),  # type: ignore[arg-type]
        stride=only(module.stride, 1),  # type: ignore[arg-type]
        padding=only(module.padding, 0),  # type: ignore[arg-type]
        dilation=only(module.dilation, 1),  # type: ignore[arg-type]
        groups=groups,
        padding_mode=module.padding_mode,
        device="meta",
    )
    return _with_weight(new, weight_GOIK, module if bias else None)


def _torch_class(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> type[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Return torch's own class; the constructor of a subclass, as in torchvision's video networks, may differ."""
    return next(kind for kind in CONVOLUTIONS if isinstance(module, kind))


def _pointwise(module: nn.Module, weight_GOI: Tensor, *, bias: bool = False) -> nn.Module:
    """Return a linear layer or a 1x1 convolution with as many dimensions as `module`."""
    groups, outputs, inputs = weight_GOI.shape
    if isinstance(module, nn.Linear):
        new: nn.Module = nn.Linear(inputs, outputs, device="meta")
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        new = _torch_class(module)(groups * inputs, groups * outputs, 1, groups=groups, device="meta")
    return _with_weight(new, weight_GOI, module if bias else None)


def _with_weight(layer: nn.Module, weight: Tensor, bias_owner: nn.Module | None) -> nn.Module:
    """Set the weight of the layer and a copy of the bias of `bias_owner`, if there is one; return the layer."""
    bias: Tensor | None = bias_owner.bias if bias_owner else None  # type: ignore[assignment]
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
    shaped = weight.reshape(layer.get_parameter("weight").shape)
    layer.weight = nn.Parameter(shaped.clone(memory_format=torch.contiguous_format))
    return layer
