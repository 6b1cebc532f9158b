"""Write one layer as a product of thinner ones, fitted to what the layer sees.

Legend: `O` output channels, `I` input channels, `R` rank, `K` kernel positions, `D` = I*K, `H W` the kernel's height
and width. All three are *activation-whitened*: the error that is smallest is that of the layer's output on the
calibration inputs, not that of its weights (Wang et al. 2024, SVD-LLM, arXiv:2403.07378, §3.1).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from spaces.anatomy import Layer
    from spaces.statistics import Moments

WIDE = 32  # channels from which Tucker-2 pays; narrower convolutions take the SVD


Numbers = Any  # a number, or an array of one number a layer: the formulas hold for both


class Shapes(NamedTuple):
    """What the cost of splitting layers depends on, each a number or an array.

    Attributes
    ----------
    outputs, inputs, groups
        Of the layers.
    area, height, width
        Positions of the kernel, and its first two sizes; 1 for a linear layer.
    plane
        Whether the kernel has two dimensions, both larger than 1.
    positions, reads, columns
        How often a kernel is applied to one example that stands at the pixels of the output, at those of the input, or,
        in a plane, at the rows of the output and the columns of the input.
    """

    outputs: Numbers
    inputs: Numbers
    groups: Numbers
    area: Numbers
    height: Numbers
    width: Numbers
    plane: Numbers
    positions: Numbers
    reads: Numbers
    columns: Numbers


@dataclass(frozen=True, slots=True)
class Factors:
    """The thinner layers in order, up to three.

    Attributes
    ----------
    array
        Shape (4, 3, ...): for each factor the numbers in its weight, its output channels, how often its kernel is
        applied, and 1 where it has the kernel of the layer, or a part of it, with its stride and padding. What is not
        there has zeros.
    """

    array: np.ndarray

    @classmethod
    def of(cls, *factors: tuple[Numbers, Numbers, Numbers, int]) -> Factors:
        """Put up to three side by side, of each the four numbers or arrays."""
        array = np.zeros((4, 3, *np.shape(factors[0][0])))
        for place, factor in enumerate(factors):
            for field, values in enumerate(factor):
                array[field, place] = values
        return cls(array)

    def where(self, condition: Numbers, others: Factors) -> Factors:
        """Return these where the condition holds and the others elsewhere."""
        return Factors(np.where(condition, self.array, others.array))

    @property
    def weights(self) -> np.ndarray:
        """Numbers in each weight, shape (3, ...)."""
        weights: np.ndarray = self.array[0]
        return weights

    @property
    def each(self) -> np.ndarray:
        """Multiply-adds of each factor, shape (3, ...)."""
        each: np.ndarray = self.array[0] * self.array[2]
        return each

    @property
    def macs(self) -> Numbers:
        """Multiply-adds of one example, all together."""
        return self.each.sum(0)


class Decomposition(Protocol):
    """How a layer of full rank becomes thinner ones."""

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return what `split` would make of layers of these shapes; the bias is the last one's."""
        ...

    def split(self, module: nn.Module, layer: Layer, seen: Moments, fraction: float) -> nn.Sequential:
        """Return the thinner layers; `module` is not changed."""
        ...


@dataclass(frozen=True, slots=True)
class Svd:
    """Linear and 1x1: W = U V; a k x k kernel: k x k to R channels, then 1x1 (Zhang et al. 2016, arXiv:1505.06798)."""

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return weights of R*D and R*O."""
        columns = shapes.inputs * shapes.area
        rank = rank_of(np.minimum(shapes.outputs, columns), fraction)
        return Factors.of(
            (rank * columns, rank, shapes.positions, 1),
            (rank * shapes.outputs, shapes.outputs, shapes.positions, 0),
        )

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

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return weights of R*I*H and R*O*W; the first kernel runs at every column."""
        tall, wide = shapes.inputs * shapes.height, shapes.outputs * shapes.width
        rank = rank_of(np.minimum(tall, wide), fraction)
        ours = Factors.of(
            (rank * tall, rank, shapes.columns, 1),
            (rank * wide, shapes.outputs, shapes.positions, 1),
        )
        return ours.where(shapes.plane, Svd().factors(shapes, fraction))

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

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return weights of I*R1, R1*R2*K and R2*O; the first kernel runs at every pixel of the input."""
        outer, inner = rank_of(shapes.outputs, fraction), rank_of(shapes.inputs, fraction)
        ours = Factors.of(
            (shapes.inputs * inner, inner, shapes.reads, 0),
            (inner * outer * shapes.area, outer, shapes.positions, 1),
            (outer * shapes.outputs, shapes.outputs, shapes.positions, 0),
        )
        wide = (shapes.area > 1) & (np.minimum(shapes.outputs, shapes.inputs) >= WIDE)
        return ours.where(wide, Svd().factors(shapes, fraction))

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


def rank_of(full: Numbers, fraction: Numbers) -> Numbers:
    """Return the rank that is this fraction of the full rank, at least 1."""
    return np.maximum(1, np.rint(fraction * full)).astype(int)


def shapes_of(layer: Layer) -> Shapes:
    """Return the shapes of one layer."""
    height, width = (*layer.kernel, 1, 1)[:2]
    plane = _is_plane(layer)
    return Shapes(
        outputs=layer.outputs,
        inputs=layer.inputs,
        groups=layer.groups,
        area=math.prod(layer.kernel),
        height=height,
        width=width,
        plane=plane,
        positions=layer.positions,
        reads=sum(run.times * math.prod(run.before) for run in layer.runs),
        columns=sum(run.times * run.after[0] * run.before[1] for run in layer.runs) if plane else 0,
    )


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
