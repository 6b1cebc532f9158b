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
    from collections.abc import Mapping, Sequence

DIVIDED = "they are reshaped into equal parts"
Place = tuple[str, str]  # a module and its side ("in" or "out"), or a bare parameter and ""
ReshapeKey = tuple[str, int, int]  # a reshape: its operation, the number of the call, and the first new dimension


class Division(NamedTuple):
    """A reshape that divides channels into parts, such as heads.

    Attributes
    ----------
    key
        The reshape, the same in every pass.
    labels
        The labels after it, without repeats.
    dimensions
        The dimensions that hold parts and channels of a part, or channels and values of a channel.
    unit
        Which of these dimensions holds what can be removed: the last one, the same channels of every part; another
        one, whole parts.
    """

    key: ReshapeKey
    labels: Tensor
    dimensions: tuple[int, ...]
    unit: int


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
    statistics
        Names of the operations of statistics over channels, such as the mean of a norm, each with the number of the
        call; fewer channels change their values, but nothing else.
    """

    classes: np.ndarray
    fixed: dict[int, str]
    equalized: dict[int, str]
    statistics: frozenset[tuple[str, int]]


@dataclass
class _Statistic:
    """The label of a statistic over channels, and these channels; `used_on` are the channels that it normalizes."""

    label: int
    channels: Tensor
    call: tuple[str, int]
    sums_powers: bool
    reason: str
    used_on: list[Tensor] = field(default_factory=list)


@dataclass
class LabelSets:
    """All labels of a network, which of them are equal, and which cannot be removed.

    Attributes
    ----------
    units
        For some divisions, by their key, which of their dimensions holds what can be removed.
    places
        The labels of each side of each module, and of each bare parameter or buffer.
    divisions
        The divisions of channels into parts.
    read_outside
        Names of the parameters of layers that the network reads outside of these, by their label.
    """

    units: Mapping[ReshapeKey, int] = field(default_factory=dict)
    places: dict[Place, Tensor] = field(default_factory=dict)
    divisions: list[Division] = field(default_factory=list)
    read_outside: dict[int, str] = field(default_factory=dict)
    _count: int = 1
    _pairs: list[np.ndarray] = field(default_factory=list)
    _fixed: list[tuple[np.ndarray, str]] = field(default_factory=list)
    _equalized: list[tuple[int, str]] = field(default_factory=list)
    _statistics: dict[int, _Statistic] = field(default_factory=dict)
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

    def divide(self, labels: Tensor, dimensions: Sequence[int], stated: Sequence[int], call: tuple[str, int]) -> Tensor:
        """Record dimensions that hold (parts, channels of a part), or (channels, values of a channel).

        Parameters
        ----------
        labels
            The labels after the division.
        dimensions
            The dimensions into which one was divided.
        stated
            The new shape as the network states it. A dimension of -1 takes what is left; unless `units` says otherwise,
            it holds what can be removed.
        call
            The name of the operation and the number of its call.
        """
        key = (*call, dimensions[0])
        varying = tuple(dimension for dimension in dimensions if varies(labels, dimension))
        if len(varying) < 2:  # noqa: PLR2004 - nothing was divided
            return labels
        left = [index for index, dimension in enumerate(varying) if stated[dimension] == -1]
        unit = self.units.get(key, left[0] if left else len(varying) - 1)
        self.divisions.append(Division(key, drop_repeats(labels), varying, unit))
        if unit == len(varying) - 1:
            return labels  # whether these are the channels of parts is known when all labels are
        others = [dimension for dimension in varying if dimension != varying[unit]]
        return self.equalize(labels, others, DIVIDED).expand(labels.shape)

    def statistic(self, channels: Tensor, call: tuple[str, int], reason: str, *, sums_powers: bool) -> Tensor:
        """Return a label for statistics over these channels, which `resolve` checks to be used in a norm of them.

        Parameters
        ----------
        channels
            The labels of the channels.
        call
            The name of the operation and the number of its call.
        reason
            Why the channels cannot be removed if the statistic is used for something else.
        sums_powers
            Whether channels of zeros add nothing to the statistic, so that it may be used for anything.
        """
        label = self.fresh((1,))
        self._statistics[int(label)] = _Statistic(int(label), drop_repeats(channels), call, sums_powers, reason)
        return label

    def broadcast(self, labels: Tensor, over: Tensor) -> None:
        """Record that values are combined with each of other channels: a statistic normalizes these."""
        statistic = self._statistics.get(int(drop_repeats(labels).max()))
        if statistic is None:
            self.fix(labels, "they are broadcast over other channels")
        else:
            statistic.used_on.append(drop_repeats(over))

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
        for _, labels, dimensions, unit in self.divisions:
            found = torch.from_numpy(classes)[labels]
            if unit == len(dimensions) - 1 and sum(varies(found, dimension) for dimension in dimensions) > 1:
                self.equalize(labels, dimensions[:-1], DIVIDED)
        statistics = self._norm_statistics(self._classes())
        classes = self._classes()
        fixed: dict[int, str] = {int(classes[0]): "it has no channels that could be removed"}
        for fixed_labels, reason in self._fixed:
            for fixed_class in np.unique(classes[fixed_labels]).tolist():
                fixed.setdefault(fixed_class, reason)
        equalized: dict[int, str] = {}
        for label, reason in self._equalized:
            equalized.setdefault(int(classes[label]), reason)
        return LabelClasses(classes, fixed, equalized, statistics)

    def _norm_statistics(self, classes: np.ndarray) -> frozenset[tuple[str, int]]:
        """Return the statistics that only normalize their own channels; tie the channels of the others."""
        known = np.fromiter(self._statistics, dtype=np.int64, count=len(self._statistics))
        sizes, own = np.bincount(classes), np.bincount(classes[known], minlength=int(classes.max()) + 1)
        fixed = {int(label) for labels, _ in self._fixed for label in classes[labels]} | self.summed_classes(classes)
        good = []
        for statistic in self._statistics.values():
            at = int(classes[statistic.label])
            channels = set(classes[statistic.channels.numpy()].reshape(-1).tolist())
            if (
                at not in fixed
                and sizes[at] == own[at]
                and all(channels.issuperset(classes[used.numpy()].reshape(-1).tolist()) for used in statistic.used_on)
            ):
                good.append(statistic.call)
            elif statistic.sums_powers:
                self._pairs.append(np.array([[0], [statistic.label]]))
            else:
                found = self.equalize(statistic.channels.reshape(-1), (0,), statistic.reason)
                self._pairs.append(np.array([[int(found)], [statistic.label]]))
        return frozenset(good)

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
