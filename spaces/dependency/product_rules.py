"""Rules for matrix products and attention: which channels they sum over, and which of their matrices are heads."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from spaces.dependency.combining import CONSTANT_OR_INPUT, combine, fix, no_labels, unexpanded
from spaces.dependency.label_sets import drop_repeats, varies

if TYPE_CHECKING:
    from torch import Tensor

    from spaces.dependency.combining import Rule
    from spaces.dependency.label_sets import LabelSets
    from spaces.dependency.operator_calls import Call


def matrix_product(sets: LabelSets, call: Call) -> list[Tensor]:
    """Multiply the matrices left (..., M, K) and right (..., K, N), and add a bias if there is one."""
    labels = call.labels
    if call.name in {"addmm", "baddbmm"}:
        *bias, left, right = labels[:3]
    else:
        bias, left, right = [], labels[0], labels[1]
    combined = no_labels(())
    if not bool(drop_repeats(left).any()) and not varies(right, -2):
        combined = right[..., :1, :]
    elif not bool(drop_repeats(right).any()) and not varies(left, -1):
        combined = left[..., :, :1]
    elif not (varies(left, -2) or varies(left, -1) or varies(right, -2)):
        combined = combine(sets, left[..., :1, :1], right[..., :1, :], call.reason)  # one label a matrix, or head
    elif not varies(left, -2) and not varies(right, -1):
        sets.mark_summed(left)
        sets.join(left[..., 0, :], right[..., :, 0], f"{call.reason} with {CONSTANT_OR_INPUT}")
    else:
        fix(sets, call)
    combined = combined.expand(call.results[0].shape)
    return [functools.reduce(lambda one, other: combine(sets, one, other, call.reason), bias, combined)]


def attention(sets: LabelSets, call: Call) -> list[Tensor]:
    """Multiply queries and keys, add a mask, and multiply the weights and the values, of every head."""
    queries, keys, values = (sets.equalize(label, (-2,), call.reason) for label in _heads(call))
    mask = next(filter(lambda given: given is not None, map(call.argument, ("attn_mask", "attn_bias"))), None)
    if varies(queries, -1) or varies(keys, -1):
        sets.mark_summed(queries)
        sets.join(queries, keys, f"{call.reason} with {CONSTANT_OR_INPUT}")
        weights = no_labels((1, 1))
    else:
        weights = combine(sets, queries[..., :1], keys[..., :1], call.reason)
    if mask is not None:
        bias = sets.equalize(unexpanded(mask, call.labels_of(mask)), (-2, -1), call.reason)
        weights = combine(sets, weights, bias, call.reason)
    return [combine(sets, weights, values, call.reason).expand(call.results[0].shape)]


def _heads(call: Call) -> list[Tensor]:
    """Return the labels of queries, keys and values; heads of keys and values that several queries share repeat."""
    queries, *others = call.labels[:3]
    return [
        queries,
        *(
            labels.repeat_interleave(queries.shape[-3] // labels.shape[-3], -3)
            if labels.dim() > 2 and labels.shape[-3] < queries.shape[-3]  # noqa: PLR2004 - there are heads
            else labels
            for labels in others
        ),
    ]


def matrix_products(call: Call) -> list[list[Tensor]]:
    """Return, for each matrix product of the operation, the labels along each dimension, the summed one included."""
    known = PRODUCT_RULES.get(call.name)
    if known is attention:
        queries, keys, values = (_edge_labels(labels) for labels in _heads(call))
        return [[*queries, keys[-2]], [*queries[:-1], keys[-2], values[-1]]]
    if known is not matrix_product:
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


PRODUCT_RULES: dict[str, Rule] = {  # by name in ATen
    **dict.fromkeys(("mm", "bmm", "matmul", "addmm", "baddbmm"), matrix_product),
    **dict.fromkeys((
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        "scaled_dot_product_attention", "_scaled_dot_product_fused_attention_overrideable",
    ), attention),
}  # fmt: skip
