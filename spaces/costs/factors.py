"""Sizes and multiply-adds of the factors of split layers, by formulas for one layer and for arrays of layers.

Fractions are of the full rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from spaces.network.anatomy import Layer

Numbers = Any  # a number, or an array with one number for each layer: the formulas hold for both


class Shapes(NamedTuple):
    """The shapes of layers on which the costs of their factors depend; each is a number or an array.

    Attributes
    ----------
    outputs, inputs, groups
        Output channels, input channels and groups of the layer.
    group_outputs, group_inputs
        Output and input channels of one group.
    area, height, width
        Positions of the kernel, and its first two sizes; 1 for a linear layer.
    plane
        Whether the kernel has two dimensions, both larger than 1.
    positions, reads, columns
        Number of applications, for one example, of a kernel at the pixels of the output; of one at the pixels of the
        input; and, for a plane, of one at the rows of the output and the columns of the input (0 for other kernels).
    """

    outputs: Numbers
    inputs: Numbers
    groups: Numbers
    group_outputs: Numbers
    group_inputs: Numbers
    area: Numbers
    height: Numbers
    width: Numbers
    plane: Numbers
    positions: Numbers
    reads: Numbers
    columns: Numbers


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of a split layer, up to three thinner layers in order of execution; a whole layer is one factor.

    Attributes
    ----------
    array
        Shape (4, 3, ...): for each factor the elements of its weight, its output channels, the number of applications
        of its kernel, and 1 where it has the kernel of the layer, or a part of it, with its stride and padding. Factors
        that do not exist have zeros.
    """

    array: np.ndarray

    @classmethod
    def of(cls, *factors: tuple[Numbers, Numbers, Numbers, Numbers]) -> Factors:
        """Return up to three factors, each given by its four numbers or arrays, in the order of `array`."""
        array = np.zeros((4, 3, *np.shape(factors[0][0])))
        for place, (weights, outputs, times, kernel) in enumerate(factors):
            array[0, place] = weights
            array[1, place] = outputs
            array[2, place] = times
            array[3, place] = kernel
        return cls(array)

    def where(self, condition: Numbers, others: Factors) -> Factors:
        """Return these factors where the condition holds, and the others elsewhere."""
        array = others.array.copy()
        np.copyto(array, self.array, where=condition)  # takes a quarter of the time of np.where
        return Factors(array)

    def only_kept(self, kept: Numbers) -> Factors:
        """Return the factors of layers that are kept (1), and zeros for those that are left out (0)."""
        return Factors(self.array * kept)

    @property
    def weights(self) -> np.ndarray:
        """Elements of the weight of each factor, shape (3, ...)."""
        weights: np.ndarray = self.array[0]
        return weights

    @property
    def macs_of_each(self) -> np.ndarray:
        """Multiply-adds of each factor for one example, shape (3, ...)."""
        macs: np.ndarray = self.array[0] * self.array[2]
        return macs

    @property
    def macs(self) -> Numbers:
        """Multiply-adds of all factors together for one example."""
        first, second, third = self.macs_of_each
        return first + second + third  # on small arrays, takes less than half the time of `sum`


class Splitting(Protocol):
    """The part of a decomposition that costs need: the factors into which it splits layers."""

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return the factors of layers of these shapes, at these fractions of their full rank."""
        ...


def rank_of(full: int, fraction: float) -> int:
    """Return the rank that is this fraction of the full rank, at least 1."""
    return int(ranks_of(full, fraction))


def ranks_of(full: Numbers, fraction: Numbers) -> Numbers:
    """Return the ranks that are these fractions of the full ranks, as floats: numpy is slow where it converts."""
    return np.maximum(1.0, np.rint(fraction * full))


def shapes_of(layer: Layer) -> Shapes:
    """Return the shapes of one layer."""
    height, width = (*layer.kernel, 1, 1)[:2]
    plane = len(layer.kernel) == 2 and min(layer.kernel) > 1  # noqa: PLR2004
    return Shapes(
        outputs=layer.outputs,
        inputs=layer.inputs,
        groups=layer.groups,
        group_outputs=layer.outputs // layer.groups,
        group_inputs=layer.inputs // layer.groups,
        area=math.prod(layer.kernel),
        height=height,
        width=width,
        plane=plane,
        positions=layer.positions,
        reads=sum(run.times * math.prod(run.before) for run in layer.runs),
        columns=sum(run.times * run.after[0] * run.before[1] for run in layer.runs) if plane else 0,
    )
