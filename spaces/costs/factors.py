"""What thinner layers cost, in formulas that hold for one layer and for arrays of them.

Legend: `R` rank; a fraction is that of the full rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from spaces.network.anatomy import Layer

Numbers = Any  # a number, or an array of one number a layer: the formulas hold for both


class Shapes(NamedTuple):
    """What the cost of splitting layers depends on, each a number or an array.

    Attributes
    ----------
    outputs, inputs, groups
        Of the layers.
    group_outputs, group_inputs
        Of one group of them.
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
    def of(cls, *factors: tuple[Numbers, Numbers, Numbers, Numbers]) -> Factors:
        """Put up to three side by side, of each the four numbers or arrays."""
        array = np.zeros((4, 3, *np.shape(factors[0][0])))
        for place, (weights, outputs, times, kernel) in enumerate(factors):
            array[0, place] = weights
            array[1, place] = outputs
            array[2, place] = times
            array[3, place] = kernel
        return cls(array)

    def where(self, condition: Numbers, others: Factors) -> Factors:
        """Return these where the condition holds and the others elsewhere."""
        array = others.array.copy()
        np.copyto(array, self.array, where=condition)  # a quarter of the time of np.where
        return Factors(array)

    def of_those(self, kept: Numbers) -> Factors:
        """Return these of the layers that are kept, 1 each, and nothing of the others, 0 each."""
        return Factors(self.array * kept)

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
        first, second, third = self.each
        return first + second + third  # less than half the time of `sum` on few


class Splitting(Protocol):
    """How layers are split into thinner ones, as far as costs ask."""

    def factors(self, shapes: Shapes, fraction: Numbers) -> Factors:
        """Return the thinner layers of layers of these shapes, at these fractions of their full rank."""
        ...


def rank_of(full: int, fraction: float) -> int:
    """Return the rank that is this fraction of the full rank, at least 1."""
    return int(ranks_of(full, fraction))


def ranks_of(full: Numbers, fraction: Numbers) -> Numbers:
    """Return the same of many, whole numbers that are held as floats: numpy is slow where it must convert."""
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
