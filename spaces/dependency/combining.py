"""Make the labels of tensors equal that an operation combines, or fix them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spaces.dependency.label_sets import LabelSets, drop_repeats, varies
from spaces.dependency.operator_calls import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

CONSTANT_OR_INPUT = "a constant or an input of the network"  # of reasons
Rule = Callable[[LabelSets, Call], list[Tensor]]


def fix(sets: LabelSets, call: Call) -> list[Tensor]:
    """Fix the channels of all arguments."""
    parameters = (
        sets.parameter_of(own) or sets.read_outside.get(int(drop_repeats(own).max()))
        for x, own in zip(call.tensors, call.labels, strict=True)
        if x.numel()
    )
    parameter = next(filter(None, parameters), None)
    for labels in call.labels:
        sets.fix(labels, f"{call.reason} with the parameter {parameter!r}" if parameter else call.reason)
    return []


def no_labels(shape: Sequence[int]) -> Tensor:
    """Return the labels of values without channels."""
    return torch.zeros((), dtype=torch.long).expand(shape)


def pointwise(sets: LabelSets, call: Call) -> list[Tensor]:
    """Combine the elements at the same place of all arguments."""
    # single numbers do not tie the channels
    labels = [unexpanded(x, own) for x, own in zip(call.tensors, call.labels, strict=True) if x.numel() > 1]
    combined = functools.reduce(lambda left, right: combine(sets, left, right, call.reason), labels or call.labels[:1])
    return [combined.expand(result.shape) for result in call.results]


def unexpanded(tensor: Tensor, labels: Tensor) -> Tensor:
    """Return the labels with size 1 along dimensions along which the tensor was expanded, as in broadcasting."""
    for dimension in range(tensor.dim()):
        if not tensor.stride(dimension) and tensor.shape[dimension] > 1 and not varies(labels, dimension):
            labels = labels.narrow(dimension, 0, 1)
    return labels


def combine(sets: LabelSets, left: Tensor, right: Tensor, reason: str) -> Tensor:
    """Make the labels of two tensors equal; broadcasting over the channels of the other tensor ties none of them."""
    shape = torch.broadcast_shapes(left.shape, right.shape)
    left, right = (labels[(None,) * (len(shape) - labels.dim())] for labels in (left, right))
    over_right = [d for d in range(len(shape)) if left.shape[d] == 1 and varies(right, d)]
    over_left = [d for d in range(len(shape)) if right.shape[d] == 1 and varies(left, d)]
    if over_right and over_left:
        for one, other in ((left, right), (right, left)):
            if sets.parameter_of(one):  # such as the positions of rotations, which all heads share
                sets.fix(one, "they are broadcast over other channels")
                return other.expand(shape)
    if over_right:
        sets.broadcast(left, right)
    if over_left:
        sets.broadcast(right, left)
    if over_right and over_left:
        return no_labels(shape)
    if over_right or over_left:
        return (right if over_right else left).expand(shape)
    return sets.join(left, right, f"{reason} with {CONSTANT_OR_INPUT}").expand(shape)
