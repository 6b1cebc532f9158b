"""The labels of a network's channels: which of them are one, and which cannot go.

Label 0 belongs to what has no channel to lose: constants, inputs, products that are summed away.
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

Place = tuple[str, str]  # a module and its side, or a bare parameter and ""


class Settled(NamedTuple):
    """The class of each label; of classes that cannot go, why; of those made equal along a dimension, why."""

    classes: np.ndarray
    fixed: dict[int, str]
    levelled: dict[int, str]


@dataclass
class LabelSets:
    """All labels that were given out, which of them are one, and which cannot go.

    Attributes
    ----------
    places
        The labels of each side of each module and of each bare parameter.
    """

    places: dict[Place, Tensor] = field(default_factory=dict)
    _made: int = 1
    _pairs: list[np.ndarray] = field(default_factory=list)
    _fixed: list[tuple[np.ndarray, str]] = field(default_factory=list)
    _levelled: list[tuple[int, str]] = field(default_factory=list)
    _parts: list[tuple[Tensor, list[int], str]] = field(default_factory=list)
    _summed: list[np.ndarray] = field(default_factory=list)

    def fresh(self, shape: Sequence[int]) -> Tensor:
        """Return labels that nothing else has."""
        count = int(np.prod(shape))
        self._made += count
        return torch.arange(self._made - count, self._made).reshape(*shape)

    def new(self, place: Place, shape: Sequence[int]) -> Tensor:
        """Return the labels of a place, made at the first call."""
        if place not in self.places:
            self.places[place] = self.fresh(shape)
        return self.places[place]

    def join(self, left: Tensor, right: Tensor, why: str) -> Tensor:
        """Make the labels equal element by element, and return them, broadcastable; one that meets a 0 cannot go."""
        left, right = _alike(left, right)
        if torch.equal(left, right):
            return left
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)]).numpy()
        pairs = pairs[:, pairs[0] != pairs[1]]
        lonely = pairs[:, pairs.min(0) == 0].max(0)
        if len(lonely):
            self._fixed.append((np.unique(lonely), why))
        self._pairs.append(pairs[:, pairs.min(0) > 0])
        if thin(left).numel() > thin(right).numel():
            left, right = right, left  # those that vary along fewer dimensions stand for both
        return torch.where(left > 0, left, right)

    def level(self, labels: Tensor, dimensions: Sequence[int], why: str) -> Tensor:
        """Make the labels equal along the dimensions, and return them with size 1 there."""
        for dimension in dimensions:
            first = labels.narrow(dimension, 0, 1)
            if varies(labels, dimension):
                made = self.join(first.expand_as(labels), labels, why)
                self._levelled.append((int(made.max()), why))
            labels = first
        return labels

    def part(self, labels: Tensor, dimensions: Sequence[int], why: str) -> None:
        """Say that channels lie in these dimensions as (parts, channels a part), or (channels, values a channel)."""
        varying = [dimension for dimension in dimensions if varies(labels, dimension)]
        if len(varying) > 1:
            self._parts.append((thin(labels), varying, why))

    def summed(self, labels: Tensor) -> None:
        """Say that a product of two tensors sums over these channels, as that of queries and keys: it reads them."""
        self._summed.append(thin(labels).unique().numpy())

    def read(self, classes: np.ndarray) -> set[int]:
        """Return the classes, as `settle` numbers them, that products of two tensors sum over."""
        return {number for labels in self._summed for number in np.unique(classes[labels]).tolist()}

    def fix(self, labels: Tensor, why: str) -> None:
        """Say that these channels cannot go."""
        found = thin(labels)
        found = found[found > 0]
        if len(found):
            self._fixed.append((found.unique().numpy(), why))

    def owner(self, labels: Tensor) -> str | None:
        """Return the bare parameter that the labels belong to, if there is one."""
        label = int(thin(labels).max())
        own = (name for (name, side), its in self.places.items() if not side and its.min() <= label <= its.max())
        return next(own, None)

    def settle(self) -> Settled:
        """Return what is known in the end.

        Channels that were divided into parts lose as many in every part, unless all values of a channel are one anyway.
        """
        classes = self._classes()
        for labels, dimensions, why in self._parts:
            found = torch.from_numpy(classes)[labels]
            if sum(varies(found, dimension) for dimension in dimensions) > 1:
                self.level(labels, dimensions[:-1], why)
        if self._parts:
            classes = self._classes()
        fixed: dict[int, str] = {int(classes[0]): "it has no channel to lose"}
        for found_here, why in self._fixed:
            for found_class in np.unique(classes[found_here]).tolist():
                fixed.setdefault(found_class, why)
        levelled: dict[int, str] = {}
        for label, why in self._levelled:
            levelled.setdefault(int(classes[label]), why)
        return Settled(classes, fixed, levelled)

    def _classes(self) -> np.ndarray:
        pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._pairs], axis=1)
        graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(self._made, self._made))
        classes: np.ndarray = connected_components(graph, directed=False)[1]
        return classes


def thin(labels: Tensor) -> Tensor:
    """Drop the repetition, of which labels of an image have much: size 1 where one element is stretched over many."""
    for dimension, stride in enumerate(labels.stride()):
        if not stride and labels.shape[dimension] > 1:
            labels = labels.narrow(dimension, 0, 1)
    return labels


def compact(labels: Tensor) -> Tensor:
    """Return the same labels, with stride 0 along every dimension along which they do not vary."""
    small = labels
    for dimension in range(labels.dim()):
        if small.shape[dimension] > 1 and not varies(small, dimension):
            small = small.narrow(dimension, 0, 1)
    return small.expand(labels.shape)


def varies(labels: Tensor, dimension: int) -> bool:
    """Whether the labels differ along the dimension."""
    if labels.shape[dimension] < 2 or not labels.stride(dimension):  # noqa: PLR2004 - one alone is like itself
        return False
    labels = thin(labels)
    return not torch.equal(labels.narrow(dimension, 0, 1).expand_as(labels), labels)


def _alike(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Broadcast both, but for the dimensions along which neither varies."""
    left, right = torch.broadcast_tensors(left, right)
    for dimension in range(left.dim()):
        if not left.stride(dimension) and not right.stride(dimension) and left.shape[dimension] > 1:
            left, right = left.narrow(dimension, 0, 1), right.narrow(dimension, 0, 1)
    return left, right
