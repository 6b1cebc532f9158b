"""What the operations of torch do to labels: move them, or make them equal, or fix them.

A rule takes the ledger and a call, and returns the labels of the results, each of the shape of its result.
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

from spaces.dependency.label_sets import LabelSets, compact, thin, varies
from spaces.dependency.operator_calls import Call
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTSIDE = "a constant or an input of the network"
Rule = Callable[[LabelSets, Call], list[Tensor]]


def rule(function: Any) -> Rule:  # noqa: ANN401 - an operation has no public type
    """Return the rule of an operation; those that nobody thought of fix what they are given."""
    name = function._schema.name.removeprefix("aten::")  # noqa: SLF001
    pointwise = torch.Tag.pointwise in function.tags or name.rstrip("_") in KEEPING
    return RULES.get(name) or (_pointwise if pointwise else _fix)


def _fix(sets: LabelSets, call: Call) -> list[Tensor]:
    owners = (sets.owner(label) for tensor, label in zip(call.tensors, call.labels, strict=True) if tensor.numel())
    owner = next(filter(None, owners), None)
    for label in call.labels:
        sets.fix(label, f"{call.why} with the parameter {owner!r}" if owner else call.why)
    return []


def _nothing(_: LabelSets, __: Call) -> list[Tensor]:
    return []


def _move(_: LabelSets, call: Call) -> list[Tensor]:
    """Do the same to the labels; an index is no data."""

    def twin(leaf: object) -> object:
        return call.of(leaf) if isinstance(leaf, Tensor) else leaf

    args, kwargs = call.args, call.kwargs
    if call.name in {"index", "index_select"}:
        args = (twin(args[0]), *args[1:])
    else:
        args, kwargs = tree_map(twin, (args, kwargs))
    return [compact(labels) for labels in tensors(call.function(*args, **kwargs))]


def _pad(_: LabelSets, call: Call) -> list[Tensor]:
    """Put a constant around; beside a channel it belongs to the channel, as more of its positions."""
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
    """Pools to one pixel lay their result out anew in place; of other strides nothing is known."""
    same = list(call.argument("size")) == list(call.labels[0].shape)
    return call.labels if same else _fix(sets, call)


def _reshape(sets: LabelSets, call: Call) -> list[Tensor]:
    if not isinstance(call.args[1], list | tuple):
        return _fix(sets, call)  # other bits, not another shape
    labels = compact(call.labels[0].reshape(call.results[0].shape))
    for inner in _divided(call.args[0].shape, labels.shape):
        sets.part(labels, inner, "they are reshaped into equal parts")
    return [labels]


def _divided(before: Sequence[int], after: Sequence[int]) -> list[list[int]]:
    """Return for each dimension that is divided into several which of the new ones it became."""
    found, at = [], 0
    remaining = [size for size in before if size > 1]
    while remaining:
        size, olds, start, span = remaining.pop(0), 1, at, 1
        while span != size:
            if span < size:
                span *= after[at]
                at += 1
            else:
                size *= remaining.pop(0)
                olds += 1
        if olds == 1:
            found.append([dimension for dimension in range(start, at) if after[dimension] > 1])
    return found


def _cat(sets: LabelSets, call: Call) -> list[Tensor]:
    """Put side by side; what is put there as tokens must have the same channels."""
    labels = _move(sets, call)[0]
    dimension = (call.argument("dim") or 0) % labels.dim()
    if call.name == "stack" or any(varies(labels, other) for other in range(labels.dim()) if other != dimension):
        labels = sets.level(labels, (dimension,), "they are put side by side as tokens are").expand(labels.shape)
    return [labels]


def _split(sets: LabelSets, call: Call) -> list[Tensor]:
    pieces = _move(sets, call)
    if len({piece.shape for piece in pieces}) == 1:
        for piece in pieces[1:]:
            sets.join(pieces[0], piece, f"their equal chunks are beside {OUTSIDE}")
    return pieces


def _slice(sets: LabelSets, call: Call) -> list[Tensor]:
    """Take one of several equal parts, which must then stay equal."""
    labels, dimension, start = call.labels[0], call.argument("dim"), call.argument("start") or 0
    size, length = labels.shape[dimension], call.results[0].shape[dimension]
    start = start + size if start < 0 else start
    if call.argument("step") == 1 and 0 < length < size and not size % length and not start % length:
        parts = labels.unflatten(dimension, (size // length, length))
        sets.level(parts, (dimension % labels.dim(),), "one of their equal parts is taken")
    return _move(sets, call)


def _shuffle(sets: LabelSets, call: Call) -> list[Tensor]:
    sets.level(call.labels[0].unflatten(1, (call.argument("groups"), -1)), (1,), "they are shuffled in equal parts")
    return _move(sets, call)


def _pixel_shuffle(sets: LabelSets, call: Call) -> list[Tensor]:
    factor = call.argument("upscale_factor")
    parts = call.labels[0].unflatten(-3, (-1, factor**2))
    labels = sets.level(parts, (parts.dim() - 3,), "they become the pixels of one").squeeze(-3)
    return [sets.level(labels, (-2, -1), call.why).expand(call.results[0].shape)]


def _glu(sets: LabelSets, call: Call) -> list[Tensor]:
    left, right = call.labels[0].chunk(2, call.argument("dim"))
    return [sets.join(left, right, call.why).expand(call.results[0].shape)]


def _window(sets: LabelSets, call: Call) -> list[Tensor]:
    """Combine neighbours in space, of as many dimensions as the name says."""
    found = re.search(r"(\d)d", call.name)
    assert found
    labels, *others = call.labels
    for other in others:
        sets.fix(other, call.why)
    made = sets.level(labels, range(-int(found[1]), 0), call.why)
    return [made.expand(result.shape) for result in call.results]


def _reduce(sets: LabelSets, call: Call) -> list[Tensor]:
    labels, dimensions = call.labels[0], call.argument("dim")
    if len(call.labels) > 1:
        return _pointwise(sets, call)  # the larger of two
    if dimensions is None or dimensions == []:
        dimensions = range(labels.dim())
    dimensions = [dimensions] if isinstance(dimensions, int) else dimensions
    along = [dimension % labels.dim() for dimension in dimensions]
    made = sets.level(labels, along, call.why)
    if made.dim() != call.results[0].dim():
        made = made.squeeze(tuple(along))
    return [made.expand(result.shape) for result in call.results]


def _norm(sets: LabelSets, call: Call) -> list[Tensor]:
    """Sum up powers: a channel that is gone adds nothing, as one of zeros."""
    labels, dimensions = call.labels[0], call.argument("dim")
    dimensions = range(labels.dim()) if dimensions is None else dimensions
    if call.argument("ord") > 0 and any(varies(labels, dimension) for dimension in dimensions):
        return [torch.zeros((), dtype=torch.long).expand(call.results[0].shape)]
    return _reduce(sets, call)


def _along(sets: LabelSets, call: Call) -> list[Tensor]:
    """Combine what lies along one dimension, which is kept."""
    labels = call.labels[0]
    if varies(labels, call.argument("dim")):
        return _fix(sets, call)
    return [labels.expand(result.shape) for result in call.results]


def _pointwise(sets: LabelSets, call: Call) -> list[Tensor]:
    # a number beside the channels does not bind them
    labels = [_one(tensor, its) for tensor, its in zip(call.tensors, call.labels, strict=True) if tensor.numel() > 1]
    made = functools.reduce(lambda left, right: _meet(sets, left, right, call.why), labels or call.labels[:1])
    return [made.expand(result.shape) for result in call.results]


def _one(tensor: Tensor, labels: Tensor) -> Tensor:
    """Let a dimension along which a tensor was only stretched be of one, as it would be if torch had stretched it."""
    for dimension in range(tensor.dim()):
        if not tensor.stride(dimension) and tensor.shape[dimension] > 1 and not varies(labels, dimension):
            labels = labels.narrow(dimension, 0, 1)
    return labels


def _meet(sets: LabelSets, left: Tensor, right: Tensor, why: str) -> Tensor:
    """Make two tensors' labels equal; what is stretched over the channels of the other one binds none of them."""
    shape = torch.broadcast_shapes(left.shape, right.shape)
    left, right = (labels[(None,) * (len(shape) - labels.dim())] for labels in (left, right))
    wide = [d for d in range(len(shape)) if left.shape[d] == 1 and varies(right, d)]
    high = [d for d in range(len(shape)) if right.shape[d] == 1 and varies(left, d)]
    for stretched, over in ((left, wide), (right, high)):
        if over:
            sets.fix(stretched, "they are stretched over other channels")
    if wide and high:
        return torch.zeros((), dtype=torch.long).expand(shape)
    if wide or high:
        return (right if wide else left).expand(shape)
    return sets.join(left, right, f"{why} with {OUTSIDE}").expand(shape)


def _product(sets: LabelSets, call: Call) -> list[Tensor]:
    """Multiply left (..., M, K) by right (..., K, N)."""
    labels = call.labels
    if call.name in {"addmm", "baddbmm"}:
        *bias, left, right = labels[:3]
    else:
        bias, left, right = [], labels[0], labels[1]
    made = torch.zeros((), dtype=torch.long)
    if not bool(thin(left).any()) and not varies(right, -2):
        made = right[..., :1, :]
    elif not bool(thin(right).any()) and not varies(left, -1):
        made = left[..., :, :1]
    elif not (varies(left, -2) or varies(left, -1) or varies(right, -2)):
        made = _meet(sets, left[..., :1, :1], right[..., :1, :], call.why)  # one label a matrix, as one a head
    elif not varies(left, -2) and not varies(right, -1):
        sets.summed(left)
        sets.join(left[..., 0, :], right[..., :, 0], f"{call.why} with {OUTSIDE}")
    else:
        _fix(sets, call)
    made = made.expand(call.results[0].shape)
    return [functools.reduce(lambda one, other: _meet(sets, one, other, call.why), bias, made)]


def multiplied(call: Call) -> list[list[Tensor]]:
    """Return for each matrix product in the operation the labels along each of its dimensions, products included."""
    if RULES.get(call.name) is _attention:
        queries, keys, values = (_edges(labels) for labels in call.labels[:3])
        return [[*queries, keys[-2]], [*queries[:-1], keys[-2], values[-1]]]
    if RULES.get(call.name) is not _product:
        return []
    left, right = call.labels[-2:]
    return [[*_edges(left), _edges(right)[-1]]]


def _edges(labels: Tensor) -> list[Tensor]:
    """Return the labels along each dimension, at the first place of all others."""
    edges = []
    for dimension in range(labels.dim()):
        edge = labels
        for other in range(labels.dim()):
            edge = edge if other == dimension else edge.narrow(other, 0, 1)
        edges.append(edge.reshape(-1))
    return edges


def _attention(sets: LabelSets, call: Call) -> list[Tensor]:
    queries, keys, values = (sets.level(label, (-2,), call.why) for label in call.labels[:3])
    sets.summed(queries)
    sets.join(queries, keys, f"{call.why} with {OUTSIDE}")
    return [values.expand(call.results[0].shape)]


KEEPING = frozenset({
    "clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy", "copy", "dropout", "native_dropout", "fill",
    "zero", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "hardswish",
    "hardsigmoid", "hardtanh", "relu6", "elu", "celu", "selu", "gelu", "silu", "mish", "leaky_relu", "softplus",
    "softshrink", "hardshrink", "threshold", "log_sigmoid_forward", "rrelu", "_prelu_kernel",
})  # fmt: skip
RULES: dict[str, Rule] = {
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
    ), _window),
    **dict.fromkeys((
        "mean", "sum", "amax", "amin", "max", "min", "prod", "std", "var", "var_mean", "logsumexp", "argmax", "argmin",
    ), _reduce),
    "linalg_vector_norm": _norm,
    **dict.fromkeys(("_softmax", "_log_softmax", "softmax", "cumsum", "sort"), _along),
    **dict.fromkeys(("mm", "bmm", "matmul", "addmm", "baddbmm"), _product),
    **dict.fromkeys((
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        "scaled_dot_product_attention", "_scaled_dot_product_fused_attention_overrideable",
    ), _attention),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"), _nothing),
}  # fmt: skip
