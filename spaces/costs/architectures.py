"""Batches of architectures: the layers that plans would leave of a network, in exact numbers, without building them.

Legend: `N` architectures, `L` layers, `G` groups of channels, `P` parts, which are 3: a layer is one part, or two or
three once it is split; a part that is not there has no weights and no outputs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from spaces.costs.extents import Extents, parameters_of
from spaces.costs.factors import Factors, Shapes, shapes_of
from spaces.network.layers import FLOAT_BITS
from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike
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
class Layers:
    """The layers of N networks while effects change them; arrays broadcast to (N, L) unless said otherwise.

    Attributes
    ----------
    frame
        The teacher.
    units_NG
        Units of each group that are kept.
    kept_NL
        1 for a layer that is there, 0 for one that is left out.
    shapes
        Kernels and how often they are applied, before any layer is split; channels are computed from the units.
    padded
        1 for a convolution with padding.
    splitting, fractions_NL
        How layers are split, None for not at all, and to which fraction of their full rank; 1 for not split.
    weight_bits_NL, activation_bits_NL
        Widths, 32 for none.
    levels_NL
        Entries of the codebook of the weights; 0 where the codes are integers.
    """

    frame: Frame
    units_NG: np.ndarray
    kept_NL: np.ndarray
    shapes: Shapes
    padded: np.ndarray
    fractions_NL: np.ndarray
    weight_bits_NL: np.ndarray
    activation_bits_NL: np.ndarray
    levels_NL: np.ndarray
    splitting: Splitting | None = None

    @classmethod
    def untouched(cls, frame: Frame, count: int) -> Layers:
        """Return the layers of `count` networks that are the teacher."""
        return cls(
            frame,
            units_NG=frame.units[None].repeat(count, axis=0),
            kept_NL=np.ones((count, len(frame.layers))),
            shapes=frame.shapes,
            padded=frame.padded,
            fractions_NL=np.ones((count, len(frame.layers))),
            weight_bits_NL=np.full((count, len(frame.layers)), FLOAT_BITS),
            activation_bits_NL=np.full((count, len(frame.layers)), FLOAT_BITS),
            levels_NL=np.zeros((count, len(frame.layers)), dtype=np.int64),
        )


class Effect(Protocol):
    """One number that steps choose for each layer or group, and what it does to layers.

    Implementations are frozen dataclasses: equal effects are one.
    """

    @property
    def of(self) -> Literal["layer", "group of channels"]:
        """What there is a number for."""
        ...

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return the numbers that change nothing, one a layer or group of the frame."""
        ...

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Change the layers of N networks.

        Parameters
        ----------
        chosen
            The numbers, a row a network; not to be changed.
        layers
            To be changed, after the effects of earlier steps.
        """
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """An effect whose numbers are one of the arrays of `Layers`.

    Attributes
    ----------
    array
        Name of that array, with a number a layer.
    unchanged
        The number that changes nothing.
    """

    array: str
    unchanged: float
    of: ClassVar[Literal["layer"]] = "layer"

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return the number that changes nothing for every layer."""
        return np.full(len(frame.layers), self.unchanged)

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Put the numbers in the place of that array."""
        setattr(layers, self.array, chosen)


@dataclass(slots=True)
class Architectures:
    """A batch of N architectures: what the plans in its rows choose, and what their layers become.

    Attributes
    ----------
    frame
        The teacher.
    count
        N.
    chosen
        For each effect, in the order of the steps, the chosen numbers, a row an architecture.
    """

    frame: Frame
    count: int
    chosen: dict[Effect, np.ndarray] = field(default_factory=dict)

    def write(self, row: int, effect: Effect, names: tuple[str, ...], values: ArrayLike) -> None:
        """Choose these numbers for these layers or groups, in one row.

        Raises
        ------
        ValueError
            If there is no such layer or group; the nearest names are listed.
        """
        if effect not in self.chosen:
            self.chosen[effect] = effect.untouched(self.frame)[None].repeat(self.count, axis=0)
        self.chosen[effect][row, self.frame.columns(effect.of, names)] = values

    @property
    def left_out(self) -> np.ndarray:
        """Share of the layers that are left out, shape (N,)."""
        out: np.ndarray = 1 - self._layers().kept_NL.mean(1)
        return out

    def owners(self, counts: Sequence[int]) -> dict[Effect, np.ndarray]:
        """Return for each effect which parameter changes each of its numbers, for `mixed`.

        Parameters
        ----------
        counts
            The rows are: nothing changed, then `counts[0]` values of a first parameter alone, and so on.
        """
        ends = [1, *(1 + np.cumsum(counts))]
        found = {}
        for effect, array in self.chosen.items():
            owner = np.full(array.shape[1], -1)
            for parameter, (start, end) in enumerate(itertools.pairwise(ends)):
                changed = (array[start:end] != array[0]).any(0)
                assert (owner[changed] == -1).all(), "a number that two parameters change together cannot be mixed"
                owner[changed] = parameter
            found[effect] = np.maximum(owner, 0)
        return found

    def mixed(self, rows_MP: np.ndarray, owners: Mapping[Effect, np.ndarray]) -> Architectures:
        """Return M architectures, each of which takes what parameter p changes from its p-th row of this batch."""
        chosen = {
            effect: array[rows_MP[:, owners[effect]], np.arange(array.shape[1])]
            for effect, array in self.chosen.items()
        }
        return Architectures(self.frame, len(rows_MP), chosen)

    def parts(self) -> Parts:
        """Return the layers as they would be shipped, by the same rules by which the steps build them."""
        frame, layers = self.frame, self._layers()
        removed = frame.units - _joined(layers)
        lost = removed @ frame.lost_GC
        outputs, inputs, groups = (frame.channels_3L - lost.reshape(-1, *frame.channels_3L.shape)).transpose(1, 0, 2)
        grouped = (groups > 1).astype(float) if frame.any_depthwise else frame.grouped
        shapes = Shapes(outputs, inputs, groups, outputs / groups, inputs / groups, *layers.shapes[5:])
        factors = _factors(shapes, layers)
        if (layers.kept_NL < 1).any():
            factors = factors.of_those(layers.kept_NL)
        last = (factors.weights > 0).astype(float)  # which holds the bias
        last[:-1] -= last[1:]
        return Parts(
            macs=factors.each,
            weights=factors.weights,
            biases=last * (outputs * frame.biased),
            outputs=factors.array[1],
            inputs=np.concatenate((shapes.group_inputs[None], factors.array[1, :-1])),  # what the factor before gives
            weight_bits=layers.weight_bits_NL,
            activation_bits=layers.activation_bits_NL,
            levels=layers.levels_NL,
            linear=frame.linear,
            padded=factors.array[3] * layers.padded,
            strided=factors.array[3] * frame.strided,
            grouped=grouped,
            product_macs=frame.products.total(removed, layers.kept_NL),
            parameters=frame.parameters.total(removed, layers.kept_NL),
            held=-frame.parameters.gone(layers.kept_NL),
            sums=(layers.kept_NL[:, frame.summed] - 1).sum(1),
        )

    def _layers(self) -> Layers:
        layers = Layers.untouched(self.frame, self.count)
        for effect, chosen in self.chosen.items():
            effect.apply(chosen, layers)
        return layers


def _joined(layers: Layers) -> np.ndarray:
    """Return the units of each group that are kept, shape (N, G), the same on both sides of a left-out layer."""
    joined = layers.frame.joined
    units = layers.units_NG.copy() if joined else layers.units_NG
    for layer, before, after in joined:  # in order of execution
        units[:, after] = np.where(layers.kept_NL[:, layer] > 0, units[:, after], units[:, before])
    return units


def _factors(shapes: Shapes, layers: Layers) -> Factors:
    weights = shapes.outputs * shapes.group_inputs * shapes.area
    whole = Factors.of((weights, shapes.outputs, shapes.positions, 1))
    wanted = layers.fractions_NL < 1
    if layers.splitting is None or not np.count_nonzero(wanted):
        return whole
    split = layers.splitting.factors(shapes, layers.fractions_NL)
    return split.where(wanted & (split.macs < weights * shapes.positions), whole)


def _padded(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", ())
    return padding == "same" or (not isinstance(padding, str) and any(padding))
