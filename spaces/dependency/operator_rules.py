"""Rules for what torch operations do to labels: move them, make them equal, or fix them.

A rule takes the label sets and a call, and returns the labels of the results, each with the shape of its result.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.utils._pytree import tree_map

from spaces.dependency.combining import CONSTANT_OR_INPUT, fix, pointwise
from spaces.dependency.label_sets import compact, varies
from spaces.dependency.norm_rules import NORM_RULES
from spaces.dependency.operator_calls import name_of
from spaces.dependency.product_rules import PRODUCT_RULES
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spaces.dependency.combining import Rule
    from spaces.dependency.label_sets import LabelSets
    from spaces.dependency.operator_calls import Call


def rule(function: Any) -> Rule:  # noqa: ANN401 - an operation has no public type
    """Return the rule of an operation; unknown operations fix the labels of their arguments."""
    name = name_of(function)
    elementwise = torch.Tag.pointwise in function.tags or name.rstrip("_") in ELEMENTWISE_OPERATIONS
    return OPERATION_RULES.get(name) or (pointwise if elementwise else fix)


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
    return call.labels if same else fix(sets, call)


def _reshape(sets: LabelSets, call: Call) -> list[Tensor]:
    if not isinstance(call.args[1], list | tuple):
        return fix(sets, call)  # a view of another dtype, not of another shape
    labels = compact(call.labels[0].reshape(call.results[0].shape))
    for dimensions in _divided_dimensions(call.args[0].shape, labels.shape):
        labels = sets.divide(labels, dimensions, call.args[1], (call.name, call.number))
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


def _embedding(sets: LabelSets, call: Call) -> list[Tensor]:
    """Look up rows of a table, each with the same channels."""
    labels = sets.equalize(call.labels[0], (0,), "they are rows of one table")
    return [labels.expand(call.results[0].shape)]


def _index_put(sets: LabelSets, call: Call) -> list[Tensor]:
    """Write values at some positions, as masks of hidden states in training do; each has all channels."""
    labels, values = call.labels_of(call.args[0]), call.labels_of(call.args[2])
    indexed = sum(1 if i is None or i.dtype != torch.bool else i.dim() for i in call.args[1])
    if values.numel() == 1:
        return [labels]
    if indexed >= labels.dim() or values.shape[-1:] != labels.shape[-1:]:
        return fix(sets, call)
    old, new = (sets.equalize(own, range(own.dim() - 1), call.reason).reshape(-1) for own in (labels, values))
    sets.join(old, new, f"{call.reason} with {CONSTANT_OR_INPUT}")
    return [labels]


def _along_dimension(sets: LabelSets, call: Call) -> list[Tensor]:
    """Combine the values along one dimension and keep its size."""
    labels = call.labels[0]
    if varies(labels, call.argument("dim")):
        return fix(sets, call)
    return [labels.expand(result.shape) for result in call.results]


ELEMENTWISE_OPERATIONS = frozenset({  # operations of ATen that act on every element alone, without the tag for it
    "clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy", "copy", "dropout", "native_dropout", "fill",
    "zero", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "hardswish",
    "hardsigmoid", "hardtanh", "relu6", "elu", "celu", "selu", "gelu", "silu", "mish", "leaky_relu", "softplus",
    "softshrink", "hardshrink", "threshold", "log_sigmoid_forward", "rrelu", "_prelu_kernel",
})  # fmt: skip
OPERATION_RULES: dict[str, Rule] = {  # by name in ATen
    **NORM_RULES,
    **PRODUCT_RULES,
    "embedding": _embedding,
    **dict.fromkeys(("index_put", "index_put_"), _index_put),
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
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "softmax", "cumsum", "sort"), _along_dimension),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"), _no_labels),
}  # fmt: skip
