"""Rules for what torch operations do to labels: move them, make them equal, or fix them.

A rule takes the label sets and a call, and returns the labels of the results, each with the shape of its result.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.utils._pytree import tree_map

from spaces.dependency.label_sets import LabelSets, compact, drop_repeats, varies
from spaces.dependency.operator_calls import Call
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

CONSTANT_OR_INPUT = "a constant or an input of the network"  # of reasons
Rule = Callable[[LabelSets, Call], list[Tensor]]


def rule(function: Any) -> Rule:  # noqa: ANN401 - an operation has no public type
    """Return the rule of an operation; unknown operations fix the labels of their arguments."""
    name = function._schema.name.removeprefix("aten::")  # noqa: SLF001
    pointwise = torch.Tag.pointwise in function.tags or name.rstrip("_") in ELEMENTWISE_OPERATIONS
    return OPERATION_RULES.get(name) or (_pointwise if pointwise else _fix)


def _fix(sets: LabelSets, call: Call) -> list[Tensor]:
    parameters = (sets.parameter_of(own) for x, own in zip(call.tensors, call.labels, strict=True) if x.numel())
    parameter = next(filter(None, parameters), None)
    for labels in call.labels:
        sets.fix(labels, f"{call.reason} with the parameter {parameter!r}" if parameter else call.reason)
    return []


def _no_labels(_: LabelSets, __: Call) -> list[Tensor]:
    return []


def _move(_: LabelSets, call: Call) -> list[Tensor]:
    """Apply the operation to the labels; indices are not replaced by labels."""

    def labels_or_leaf(leaf: object) -> object:
        return call.labels_of(leaf) if isinstance(leaf, Tensor) else leaf

    args, kwargs = call.args, call.kwargs
    if call.name in {"index", "index_select"}:
        args = (labels_or_leaf(args[0]), *args[1:])
    else:
        args, kwargs = tree_map(labels_or_leaf, (args, kwargs))
    return [compact(labels) for labels in tensors(call.function(*args, **kwargs))]


def _pad(_: LabelSets, call: Call) -> list[Tensor]:
    """Pad with a constant: along the channels it gets label 0, in other dimensions it is part of the channels."""
    labels, sides = call.labels[0], call.argument("pad")
    for index in range(0, len(sides), 2):
        dimension = labels.dim() - 1 - index // 2
        if varies(labels, dimension):
            labels = F.pad(labels, [*[0] * index, *sides[index : index + 2]])
        else:
            shape = list(labels.shape)
            shape[dimension] = call.results[0].shape[dimension]
            labels = labels.narrow(dimension, 0, 1).expand(shape)
    return [labels]


def _restride(sets: LabelSets, call: Call) -> list[Tensor]:
    """Keep the labels if the shape is kept, as in pooling to one pixel; fix them for other strides."""
    same = list(call.argument("size")) == list(call.labels[0].shape)
    return call.labels if same else _fix(sets, call)


def _reshape(sets: LabelSets, call: Call) -> list[Tensor]:
    if not isinstance(call.args[1], list | tuple):
        return _fix(sets, call)  # a view of another dtype, not of another shape
    labels = compact(call.labels[0].reshape(call.results[0].shape))
    for dimensions in _divided_dimensions(call.args[0].shape, labels.shape):
        sets.divide(labels, dimensions, "they are reshaped into equal parts")
    return [labels]


def _divided_dimensions(before: Sequence[int], after: Sequence[int]) -> list[list[int]]:
    """Return, for each dimension that a reshape divides into several, the new dimensions."""
    found, at = [], 0
    remaining = [size for size in before if size > 1]
    while remaining:
        size, merged, start, span = remaining.pop(0), 1, at, 1
        while span != size:
            if span < size:
                span *= after[at]
                at += 1
            else:
                size *= remaining.pop(0)
                merged += 1
        if merged == 1:
            found.append([dimension for dimension in range(start, at) if after[dimension] > 1])
    return found


def _cat(sets: LabelSets, call: Call) -> list[Tensor]:
    """Concatenate; tensors that are concatenated along another dimension must have the same channels."""
    labels = _move(sets, call)[0]
    dimension = (call.argument("dim") or 0) % labels.dim()
    if call.name == "stack" or any(varies(labels, other) for other in range(labels.dim()) if other != dimension):
        labels = sets.equalize(labels, (dimension,), "they are concatenated as tokens").expand(labels.shape)
    return [labels]


def _split(sets: LabelSets, call: Call) -> list[Tensor]:
    pieces = _move(sets, call)
    if len({piece.shape for piece in pieces}) == 1:
        for piece in pieces[1:]:
            sets.join(pieces[0], piece, f"one of their equal chunks is {CONSTANT_OR_INPUT}")
    return pieces


def _slice(sets: LabelSets, call: Call) -> list[Tensor]:
    """Take a slice; if it is one of several equal parts, the parts must stay equal."""
    labels, dimension, start = call.labels[0], call.argument("dim"), call.argument("start") or 0
    size, length = labels.shape[dimension], call.results[0].shape[dimension]
    start = start + size if start < 0 else start
    if call.argument("step") == 1 and 0 < length < size and not size % length and not start % length:
        parts = labels.unflatten(dimension, (size // length, length))
        sets.equalize(parts, (dimension % labels.dim(),), "only one of their equal parts is read")
    return _move(sets, call)


def _shuffle(sets: LabelSets, call: Call) -> list[Tensor]:
    sets.equalize(call.labels[0].unflatten(1, (call.argument("groups"), -1)), (1,), "they are shuffled in equal parts")
    return _move(sets, call)


def _pixel_shuffle(sets: LabelSets, call: Call) -> list[Tensor]:
    factor = call.argument("upscale_factor")
    parts = call.labels[0].unflatten(-3, (-1, factor**2))
    labels = sets.equalize(parts, (parts.dim() - 3,), "they become the pixels of one channel").squeeze(-3)
    return [sets.equalize(labels, (-2, -1), call.reason).expand(call.results[0].shape)]


def _glu(sets: LabelSets, call: Call) -> list[Tensor]:
    left, right = call.labels[0].chunk(2, call.argument("dim"))
    return [sets.join(left, right, call.reason).expand(call.results[0].shape)]


def _spatial(sets: LabelSets, call: Call) -> list[Tensor]:
    """Combine neighbouring positions, in the number of spatial dimensions that the name contains."""
    found = re.search(r"(\d)d", call.name)
    assert found
    labels, *others = call.labels
    for other in others:
        sets.fix(other, call.reason)
    combined = sets.equalize(labels, range(-int(found[1]), 0), call.reason)
    return [combined.expand(result.shape) for result in call.results]


def _reduce(sets: LabelSets, call: Call) -> list[Tensor]:
    labels, dimensions = call.labels[0], call.argument("dim")
    if len(call.labels) > 1:
        return _pointwise(sets, call)  # the maximum or minimum of two tensors
    if dimensions is None or dimensions == []:
        dimensions = range(labels.dim())
    dimensions = [dimensions] if isinstance(dimensions, int) else dimensions
    along = [dimension % labels.dim() for dimension in dimensions]
    combined = sets.equalize(labels, along, call.reason)
    if combined.dim() != call.results[0].dim():
        combined = combined.squeeze(tuple(along))
    return [combined.expand(result.shape) for result in call.results]


def _vector_norm(sets: LabelSets, call: Call) -> list[Tensor]:
    """Sum powers: removing a channel changes nothing more than setting it to zero."""
    labels, dimensions = call.labels[0], call.argument("dim")
    dimensions = range(labels.dim()) if dimensions is None else dimensions
    if call.argument("ord") > 0 and any(varies(labels, dimension) for dimension in dimensions):
        return [torch.zeros((), dtype=torch.long).expand(call.results[0].shape)]
    return _reduce(sets, call)


def _along_dimension(sets: LabelSets, call: Call) -> list[Tensor]:
    """Combine the values along one dimension and keep its size."""
    labels = call.labels[0]
    if varies(labels, call.argument("dim")):
        return _fix(sets, call)
    return [labels.expand(result.shape) for result in call.results]


def _pointwise(sets: LabelSets, call: Call) -> list[Tensor]:
    # single numbers do not tie the channels
    labels = [_unexpanded(x, own) for x, own in zip(call.tensors, call.labels, strict=True) if x.numel() > 1]
    combined = functools.reduce(lambda left, right: _combine(sets, left, right, call.reason), labels or call.labels[:1])
    return [combined.expand(result.shape) for result in call.results]


def _unexpanded(tensor: Tensor, labels: Tensor) -> Tensor:
    """Return the labels with size 1 along dimensions along which the tensor was expanded, as in broadcasting."""
    for dimension in range(tensor.dim()):
        if not tensor.stride(dimension) and tensor.shape[dimension] > 1 and not varies(labels, dimension):
            labels = labels.narrow(dimension, 0, 1)
    return labels


def _combine(sets: LabelSets, left: Tensor, right: Tensor, reason: str) -> Tensor:
    """Make the labels of two tensors equal; broadcasting over the channels of the other tensor ties none of them."""
    shape = torch.broadcast_shapes(left.shape, right.shape)
    left, right = (labels[(None,) * (len(shape) - labels.dim())] for labels in (left, right))
    over_right = [d for d in range(len(shape)) if left.shape[d] == 1 and varies(right, d)]
    over_left = [d for d in range(len(shape)) if right.shape[d] == 1 and varies(left, d)]
    for broadcast, over in ((left, over_right), (right, over_left)):
        if over:
            sets.fix(broadcast, "they are broadcast over other channels")
    if over_right and over_left:
        return torch.zeros((), dtype=torch.long).expand(shape)
    if over_right or over_left:
        return (right if over_right else left).expand(shape)
    return sets.join(left, right, f"{reason} with {CONSTANT_OR_INPUT}").expand(shape)


def _matrix_product(sets: LabelSets, call: Call) -> list[Tensor]:
    """Multiply the matrices left (..., M, K) and right (..., K, N), and add a bias if there is one."""
    labels = call.labels
    if call.name in {"addmm", "baddbmm"}:
        *bias, left, right = labels[:3]
    else:
        bias, left, right = [], labels[0], labels[1]
    combined = torch.zeros((), dtype=torch.long)
    if not bool(drop_repeats(left).any()) and not varies(right, -2):
        combined = right[..., :1, :]
    elif not bool(drop_repeats(right).any()) and not varies(left, -1):
        combined = left[..., :, :1]
    elif not (varies(left, -2) or varies(left, -1) or varies(right, -2)):
        combined = _combine(sets, left[..., :1, :1], right[..., :1, :], call.reason)  # one label a matrix, or head
    elif not varies(left, -2) and not varies(right, -1):
        sets.mark_summed(left)
        sets.join(left[..., 0, :], right[..., :, 0], f"{call.reason} with {CONSTANT_OR_INPUT}")
    else:
        _fix(sets, call)
    combined = combined.expand(call.results[0].shape)
    return [functools.reduce(lambda one, other: _combine(sets, one, other, call.reason), bias, combined)]


def matrix_products(call: Call) -> list[list[Tensor]]:
    """Return, for each matrix product of the operation, the labels along each dimension, the summed one included."""
    if OPERATION_RULES.get(call.name) is _attention:
        queries, keys, values = (_edge_labels(labels) for labels in call.labels[:3])
        return [[*queries, keys[-2]], [*queries[:-1], keys[-2], values[-1]]]
    if OPERATION_RULES.get(call.name) is not _matrix_product:
        return []
    left, right = call.labels[-2:]
    return [[*_edge_labels(left), _edge_labels(right)[-1]]]


def _edge_labels(labels: Tensor) -> list[Tensor]:
    """Return the labels along each dimension, at the first index of all others."""
    edges = []
    for dimension in range(labels.dim()):
        edge = labels
        for other in range(labels.dim()):
            edge = edge if other == dimension else edge.narrow(other, 0, 1)
        edges.append(edge.reshape(-1))
    return edges


def _attention(sets: LabelSets, call: Call) -> list[Tensor]:
    queries, keys, values = (sets.equalize(label, (-2,), call.reason) for label in call.labels[:3])
    sets.mark_summed(queries)
    sets.join(queries, keys, f"{call.reason} with {CONSTANT_OR_INPUT}")
    return [values.expand(call.results[0].shape)]


ELEMENTWISE_OPERATIONS = frozenset({  # operations of ATen that act on every element alone, without the tag for it
    "clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy", "copy", "dropout", "native_dropout", "fill",
    "zero", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "hardswish",
    "hardsigmoid", "hardtanh", "relu6", "elu", "celu", "selu", "gelu", "silu", "mish", "leaky_relu", "softplus",
    "softshrink", "hardshrink", "threshold", "log_sigmoid_forward", "rrelu", "_prelu_kernel",
})  # fmt: skip
OPERATION_RULES: dict[str, Rule] = {  # by name in ATen
    **dict.fromkeys((
        "permute", "transpose", "t", "select", "unbind", "expand", "squeeze", "unsqueeze", "index", "index_select",
        "roll", "flip", "repeat", "unfold", "movedim", "narrow", "pixel_unshuffle", "tril", "triu",
    ), _move),
    "constant_pad_nd": _pad,
    "as_strided_": _restride,
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape"), _reshape),
    **dict.fromkeys(("cat", "stack"), _cat),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "slice": _slice,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _shuffle),
    "pixel_shuffle": _pixel_shuffle,
    "glu": _glu,
    **dict.fromkeys((
        *(f"{kind}_pool{n}d{rest}" for kind in ("max", "avg", "adaptive_avg", "_adaptive_avg", "adaptive_max")
          for n in (1, 2, 3) for rest in ("", "_with_indices")),
        *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        *(f"{kind}{n}d{rest}" for kind in ("upsample_nearest", "_upsample_nearest_exact", "upsample_linear",
          "upsample_bilinear", "upsample_bicubic", "upsample_trilinear") for n in (1, 2, 3) for rest in ("", "_aa")),
        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "mkldnn_max_pool2d", "grid_sampler_2d", "grid_sampler_3d",
    ), _spatial),
    **dict.fromkeys((
        "mean", "sum", "amax", "amin", "max", "min", "prod", "std", "var", "var_mean", "logsumexp", "argmax", "argmin",
    ), _reduce),
    "linalg_vector_norm": _vector_norm,
    **dict.fromkeys(("_softmax", "_log_softmax", "softmax", "cumsum", "sort"), _along_dimension),
    **dict.fromkeys(("mm", "bmm", "matmul", "addmm", "baddbmm"), _matrix_product),
    **dict.fromkeys((
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        "scaled_dot_product_attention", "_scaled_dot_product_fused_attention_overrideable",
    ), _attention),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"), _no_labels),
}  # fmt: skip
