"""What a plan would leave of a network, in numbers, without building it: exact, and a thousand times quicker.

Legend: `N` plans, `L` layers, `G` groups of channels, `P` parts, which are 3: a layer is one, or two or
three once it is factorized; what is not there has no weights and no outputs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spaces.costs.extents import Extents, parameters_of
from spaces.costs.factors import Factors, Shapes, shapes_of
from spaces.network.layers import FLOAT_BITS
from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from spaces.costs.factors import Splitting
    from spaces.network.anatomy import Anatomy


@dataclass(frozen=True, slots=True)
class Parts:
    """The layers of N networks as they would be shipped, arrays that broadcast to (P, N, L) unless said otherwise.

    Attributes
    ----------
    macs
        Multiply-adds of one example.
    weights, biases
        Numbers held.
    outputs
        Output channels, 0 where there is no such part.
    inputs
        Input channels of a group.
    weight_bits, activation_bits
        Widths, 32 for none.
    levels
        Entries of the codebook of the weights; 0 where the codes are integers.
    linear, padded, strided, grouped
        Whether the part is a linear layer, or which attributes the convolution has.
    product_macs
        Multiply-adds of products beside the layers, shape (N,), and
    parameters
        numbers held outside of layers, shape (N,); both but for what no plan changes.
    held
        Tensors of those numbers, shape (N,), and
    sums
        sums of branches, shape (N,); both less those of the teacher.
    """

    macs: np.ndarray
    weights: np.ndarray
    biases: np.ndarray
    outputs: np.ndarray
    inputs: np.ndarray
    weight_bits: np.ndarray
    activation_bits: np.ndarray
    levels: np.ndarray
    linear: np.ndarray
    padded: np.ndarray
    strided: np.ndarray
    grouped: np.ndarray
    product_macs: np.ndarray
    parameters: np.ndarray
    held: np.ndarray
    sums: np.ndarray


class Frame:
    """The anatomy of a network as arrays, for outlines of what plans leave of it.

    Parameters
    ----------
    anatomy
        Of the teacher.
    finished
        The teacher as `deployed` returns it.
    """

    def __init__(self, anatomy: Anatomy, finished: nn.Module) -> None:
        self.anatomy = anatomy
        layers, groups = anatomy.layers, anatomy.groups
        self.layers = {layer.name: column for column, layer in enumerate(layers)}
        self.groups = {group.name: column for column, group in enumerate(groups)}
        # floats throughout: numpy is three times slower where it must convert, and what is counted stays exact
        self.units = np.array([group.units for group in groups], dtype=float)
        each = [shapes_of(layer) for layer in layers]
        self.shapes = Shapes(*(np.array(values, dtype=float) for values in zip(*each, strict=True)))
        self.shapes = self.shapes._replace(plane=self.shapes.plane > 0)
        depthwise = np.array([layer.depthwise for layer in layers], dtype=bool)
        self.any_depthwise = bool(depthwise.any())
        outputs = self._lost("out")
        inputs = np.where(depthwise, outputs, self._lost("in"))  # which these have of both
        self.channels_3L = np.stack((self.shapes.outputs, self.shapes.inputs, self.shapes.groups))
        self.lost_GC = np.concatenate((outputs, inputs, outputs * depthwise), axis=1)  # C = 3L, in that order
        self.ones, self.off = np.ones((1, len(layers))), np.full((1, len(layers)), FLOAT_BITS)
        modules = dict(finished.named_modules())
        mine = [modules[name] for name in self.layers]
        self.biased = np.array([module.bias is not None for module in mine], dtype=float)
        self.linear = np.array([not layer.kernel for layer in layers], dtype=bool)
        self.strided = np.array([max(layer.stride, default=1) > 1 for layer in layers], dtype=float)
        self.grouped = (self.shapes.groups > 1).astype(float)
        self.padded = np.array([_padded(module) for module in mine], dtype=float)
        self.joined = [
            (self.layers[branch.name], *(self.groups[name] for name in branch.joins))
            for branch in self.anatomy.branches
            if branch.joins
        ]
        self.summed = [self.layers[branch.name] for branch in self.anatomy.branches if not branch.straight]
        self._columns: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
        self.products = Extents(self.anatomy.products, self.groups, self.layers)
        self.parameters = Extents(parameters_of(finished, self.anatomy), self.groups, self.layers)

    def _lost(self, side: str) -> np.ndarray:
        """Return how many channels on that side of each layer go with a unit of each group, shape (G, L)."""
        lost = np.zeros((len(self.groups), len(self.layers)))
        for row, group in enumerate(self.anatomy.groups):
            for member in group.members:
                if member.side == side and member.layer in self.layers:
                    lost[row, self.layers[member.layer]] += len(member.positions[0])
        return lost

    def columns(self, what: str, names: tuple[str, ...]) -> np.ndarray:
        """Return the columns of layers or groups.

        Raises
        ------
        ValueError
            If there is no such one; the nearest names are listed.
        """
        if (what, names) not in self._columns:  # nearly always the same names, all of them
            known = self.layers if what == "layer" else self.groups
            for name in names:
                if name not in known:
                    raise ValueError(unknown_name(what, name, known))
            self._columns[what, names] = np.array([known[name] for name in names])
        return self._columns[what, names]


@dataclass(slots=True)
class Architectures:
    """What N plans leave of a network; steps write into a row of it what they would do.

    Attributes
    ----------
    frame
        The network.
    units_NG
        Units of each group that are kept.
    fractions_NL
        Fractions of the full rank; 1 for a layer that is not split.
    kept_NL
        1 for a layer that is there, 0 for one of a branch that is left out.
    weight_bits_NL, activation_bits_NL
        Widths.
    levels_NL
        See `Parts`.
    decomposition
        How layers are split, the same in all rows.
    """

    frame: Frame
    units_NG: np.ndarray
    fractions_NL: np.ndarray
    kept_NL: np.ndarray
    weight_bits_NL: np.ndarray
    activation_bits_NL: np.ndarray
    levels_NL: np.ndarray
    decomposition: Splitting | None = None

    @classmethod
    def untouched(cls, frame: Frame, count: int) -> Architectures:
        """Return the outline of so many plans that change nothing."""
        return cls(
            frame,
            units_NG=frame.units[None].repeat(count, axis=0),
            fractions_NL=frame.ones.repeat(count, axis=0),
            kept_NL=frame.ones.repeat(count, axis=0),
            weight_bits_NL=frame.off.repeat(count, axis=0),
            activation_bits_NL=frame.off.repeat(count, axis=0),
            levels_NL=np.zeros((count, len(frame.layers)), dtype=np.int64),
        )

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        widths = self.weight_bits_NL, self.activation_bits_NL, self.levels_NL
        return self.units_NG, self.fractions_NL, self.kept_NL, *widths

    @property
    def left_out(self) -> np.ndarray:
        """Share of the layers that are left out, shape (N,)."""
        out: np.ndarray = 1 - self.kept_NL.mean(1)
        return out

    def owners(self, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Return which parameter changes each column of each array, for `mixed`.

        Parameters
        ----------
        counts
            The rows are: nothing changed, then `counts[0]` values of a first parameter alone, and so on.
        """
        ends = [1, *(1 + np.cumsum(counts))]
        found = []
        for array in self._arrays:
            owner = np.full(array.shape[1], -1)
            for parameter, (start, end) in enumerate(itertools.pairwise(ends)):
                changed = (array[start:end] != array[0]).any(0)
                assert (owner[changed] == -1).all(), "a number that two parameters change together cannot be mixed"
                owner[changed] = parameter
            found.append(np.maximum(owner, 0))
        return tuple(found)

    def mixed(self, rows_MP: np.ndarray, owners: tuple[np.ndarray, ...]) -> Architectures:
        """Return M outlines, each of which takes what parameter p changes from its p-th row of this one."""
        units, fractions, kept, weight_bits, activation_bits, levels = (
            array[rows_MP[:, owner], np.arange(len(owner))] for array, owner in zip(self._arrays, owners, strict=True)
        )
        return Architectures(
            self.frame, units, fractions, kept, weight_bits, activation_bits, levels, self.decomposition
        )

    def parts(self) -> Parts:
        """Return the layers that are left, by the same rules by which the steps build them."""
        frame = self.frame
        removed = frame.units - self._units()
        lost = removed @ frame.lost_GC
        outputs, inputs, groups = (frame.channels_3L - lost.reshape(-1, *frame.channels_3L.shape)).transpose(1, 0, 2)
        grouped = (groups > 1).astype(float) if frame.any_depthwise else frame.grouped
        shapes = Shapes(outputs, inputs, groups, outputs / groups, inputs / groups, *frame.shapes[5:])
        factors = self._factors(shapes)
        if frame.anatomy.branches:
            factors = factors.of_those(self.kept_NL)
        last = (factors.weights > 0).astype(float)  # which holds the bias
        last[:-1] -= last[1:]
        return Parts(
            macs=factors.each,
            weights=factors.weights,
            biases=last * (outputs * frame.biased),
            outputs=factors.array[1],
            inputs=np.concatenate((shapes.group_inputs[None], factors.array[1, :-1])),  # what the factor before gives
            weight_bits=self.weight_bits_NL,
            activation_bits=self.activation_bits_NL,
            levels=self.levels_NL,
            linear=frame.linear,
            padded=factors.array[3] * frame.padded,
            strided=factors.array[3] * frame.strided,
            grouped=grouped,
            product_macs=frame.products.total(removed, self.kept_NL),
            parameters=frame.parameters.total(removed, self.kept_NL),
            held=-frame.parameters.gone(self.kept_NL),
            sums=(self.kept_NL[:, frame.summed] - 1).sum(1),
        )

    def _units(self) -> np.ndarray:
        """Return the units of each group that are kept, shape (N, G), alike on both sides of what is left out."""
        units = self.units_NG.copy() if self.frame.joined else self.units_NG
        for layer, before, behind in self.frame.joined:  # in order of execution
            units[:, behind] = np.where(self.kept_NL[:, layer] > 0, units[:, behind], units[:, before])
        return units

    def _factors(self, shapes: Shapes) -> Factors:
        weights = shapes.outputs * shapes.group_inputs * shapes.area
        whole = Factors.of((weights, shapes.outputs, shapes.positions, 1))
        wanted = self.fractions_NL < 1
        if self.decomposition is None or not np.count_nonzero(wanted):
            return whole
        split = self.decomposition.factors(shapes, self.fractions_NL)
        return split.where(wanted & (split.macs < weights * shapes.positions), whole)


def _padded(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", ())
    return padding == "same" or (not isinstance(padding, str) and any(padding))
