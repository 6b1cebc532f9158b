"""The labels of a network's channels: which of them are equal, and which cannot be removed.

Label 0 marks values without removable channels: constants, inputs, and sums over channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

Place = tuple[str, str]  # a module and its side ("in" or "out"), or a bare parameter and ""


class LabelClasses(NamedTuple):
    """The classes of equal labels.

    Attributes
    ----------
    classes
        The class of each label.
    fixed
        For classes that cannot be removed, the reason.
    equalized
        For classes with labels that were made equal along a dimension, the reason.
    """

    classes: np.ndarray
    fixed: dict[int, str]
    equalized: dict[int, str]


@dataclass
class LabelSets:
    """All labels of a network, which of them are equal, and which cannot be removed.

    Attributes
    ----------
    places
        The labels of each side of each module, and of each bare parameter.
    """

    places: dict[Place, Tensor] = field(default_factory=dict)
    _count: int = 1
    _pairs: list[np.ndarray] = field(default_factory=list)
    _fixed: list[tuple[np.ndarray, str]] = field(default_factory=list)
    _equalized: list[tuple[int, str]] = field(default_factory=list)
    _divided: list[tuple[Tensor, list[int], str]] = field(default_factory=list)
    _summed: list[np.ndarray] = field(default_factory=list)

    def fresh(self, shape: Sequence[int]) -> Tensor:
        """Return new labels."""
        count = int(np.prod(shape))
        self._count += count
        return torch.arange(self._count - count, self._count).reshape(*shape)

    def of_place(self, place: Place, shape: Sequence[int]) -> Tensor:
        """Return the labels of a place; create them at the first call."""
        if place not in self.places:
            self.places[place] = self.fresh(shape)
        return self.places[place]

    def join(self, left: Tensor, right: Tensor, reason: str) -> Tensor:
        """Make the labels equal element by element and return them; channels that meet a 0 cannot be removed."""
        left, right = _broadcast(left, right)
        if torch.equal(left, right):
            return left
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)]).numpy()
        pairs = pairs[:, pairs[0] != pairs[1]]
        joined_with_0 = pairs[:, pairs.min(0) == 0].max(0)
        if len(joined_with_0):
            self._fixed.append((np.unique(joined_with_0), reason))
        self._pairs.append(pairs[:, pairs.min(0) > 0])
        if drop_repeats(left).numel() > drop_repeats(right).numel():
            left, right = right, left  # return the labels that vary along fewer dimensions
        return torch.where(left > 0, left, right)

    def equalize(self, labels: Tensor, dimensions: Sequence[int], reason: str) -> Tensor:
        """Make the labels equal along the dimensions; return them with size 1 there."""
        for dimension in dimensions:
            first = labels.narrow(dimension, 0, 1)
            if varies(labels, dimension):
                joined = self.join(first.expand_as(labels), labels, reason)
                self._equalized.append((int(joined.max()), reason))
            labels = first
        return labels

    def divide(self, labels: Tensor, dimensions: Sequence[int], reason: str) -> None:
        """Record dimensions that hold (parts, channels of a part), or (channels, values of a channel)."""
        varying = [dimension for dimension in dimensions if varies(labels, dimension)]
        if len(varying) > 1:
            self._divided.append((drop_repeats(labels), varying, reason))

    def mark_summed(self, labels: Tensor) -> None:
        """Record channels over which a product of two tensors sums, as that of queries and keys; it reads them."""
        self._summed.append(drop_repeats(labels).unique().numpy())

    def summed_classes(self, classes: np.ndarray) -> set[int]:
        """Return the classes, as numbered by `resolve`, over which products of two tensors sum."""
        return {number for labels in self._summed for number in np.unique(classes[labels]).tolist()}

    def fix(self, labels: Tensor, reason: str) -> None:
        """Record that these channels cannot be removed."""
        labels = drop_repeats(labels)
        labels = labels[labels > 0]
        if len(labels):
            self._fixed.append((labels.unique().numpy(), reason))

    def parameter_of(self, labels: Tensor) -> str | None:
        """Return the bare parameter to which the labels belong, if there is one."""
        label = int(drop_repeats(labels).max())
        names = (name for (name, side), own in self.places.items() if not side and own.min() <= label <= own.max())
        return next(names, None)

    def resolve(self) -> LabelClasses:
        """Return the classes of equal labels.

        Channels that were divided into parts lose the same channels in every part, unless the division only separated
        the values of single channels.
        """
        classes = self._classes()
        for labels, dimensions, reason in self._divided:
            found = torch.from_numpy(classes)[labels]
            if sum(varies(found, dimension) for dimension in dimensions) > 1:
                self.equalize(labels, dimensions[:-1], reason)
        if self._divided:
            classes = self._classes()
        fixed: dict[int, str] = {int(classes[0]): "it has no channels that could be removed"}
        for fixed_labels, reason in self._fixed:
            for fixed_class in np.unique(classes[fixed_labels]).tolist():
                fixed.setdefault(fixed_class, reason)
        equalized: dict[int, str] = {}
        for label, reason in self._equalized:
            equalized.setdefault(int(classes[label]), reason)
        return LabelClasses(classes, fixed, equalized)

    def _classes(self) -> np.ndarray:
        pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._pairs], axis=1)
        graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(self._count, self._count))
        classes: np.ndarray = connected_components(graph, directed=False)[1]
        return classes


def drop_repeats(labels: Tensor) -> Tensor:
    """Return the labels with size 1 along expanded dimensions, of which labels of images have many."""
    for dimension, stride in enumerate(labels.stride()):
        if not stride and labels.shape[dimension] > 1:
            labels = labels.narrow(dimension, 0, 1)
    return labels


def compact(labels: Tensor) -> Tensor:
    """Return the same labels, expanded (stride 0) along every dimension along which they do not vary."""
    small = labels
    for dimension in range(labels.dim()):
        if small.shape[dimension] > 1 and not varies(small, dimension):
            small = small.narrow(dimension, 0, 1)
    return small.expand(labels.shape)


def varies(labels: Tensor, dimension: int) -> bool:
    """Whether the labels differ along the dimension."""
    if labels.shape[dimension] < 2 or not labels.stride(dimension):  # noqa: PLR2004 - one label cannot differ
        return False
    labels = drop_repeats(labels)
    return not torch.equal(labels.narrow(dimension, 0, 1).expand_as(labels), labels)


def _broadcast(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Broadcast both, with size 1 along dimensions along which both are expanded."""
    left, right = torch.broadcast_tensors(left, right)
    for dimension in range(left.dim()):
        if not left.stride(dimension) and not right.stride(dimension) and left.shape[dimension] > 1:
            left, right = left.narrow(dimension, 0, 1), right.narrow(dimension, 0, 1)
    return left, right
