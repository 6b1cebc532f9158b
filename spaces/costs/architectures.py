"""Batches of architectures: the exact sizes of the layers that plans leave, computed without building networks.

Legend: `N` architectures, `L` layers, `G` groups of channels, `M` architectures of a mixed batch, `P` parts, always 3:
a layer has one part, or two or three where it is split; a part that does not exist has no weights and no outputs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from spaces.costs.effects import Effect, Layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from spaces.costs.frame import Frame


OF_LAYERS = (  # the arrays of `Parts` with a number for each layer
    "macs", "weights", "biases", "outputs", "inputs", "weight_bits", "activation_bits", "levels", "linear", "padded",
    "strided", "grouped",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parts:
    """The layers of N networks in their deployed form, as arrays that broadcast to (P, N, L) unless a shape is given.

    Attributes
    ----------
    macs
        Multiply-adds of one example.
    weights, biases
        Elements of the weight and of the bias.
    outputs
        Output channels, 0 where the part does not exist.
    inputs
        Input channels of a group of the convolution.
    weight_bits, activation_bits
        Bits of a weight and of an input, 32 for a float.
    levels
        Entries of the codebook of the weights; 0 where the codes are integers.
    linear, padded, strided, grouped
        Whether the part is a linear layer, or a convolution with padding, with a stride, of several groups.
    product_macs
        Multiply-adds of matrix products outside of layers, shape (N,), up to a constant that no plan changes.
    parameters
        Parameters outside of layers, shape (N,), up to a constant that no plan changes.
    held
        Parameter tensors outside of layers, shape (N,), minus those of the teacher.
    sums
        Sums of branches, shape (N,), minus those of the teacher.
    resized
        1 where the file resizes its input, 0 otherwise, shape (N,).
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
    resized: np.ndarray

    def of_layers(self, columns: Sequence[int]) -> Parts:
        """Return these layers alone, without products, parameters and sums outside of them."""
        shape = np.broadcast_shapes(*(np.shape(getattr(self, name)) for name in OF_LAYERS))
        chosen = {name: np.broadcast_to(getattr(self, name), shape)[..., list(columns)] for name in OF_LAYERS}
        nothing = np.zeros(shape[1])
        return Parts(**chosen, product_macs=nothing, parameters=nothing, held=nothing, sums=nothing, resized=nothing)


@dataclass(slots=True)
class Architectures:
    """A batch of N architectures: the choices of one plan in each row, and the layers that result.

    Attributes
    ----------
    frame
        The teacher.
    count
        N.
    chosen
        For each effect, in the order of the steps, the chosen numbers, with one row for each architecture.
    """

    frame: Frame
    count: int
    chosen: dict[Effect, np.ndarray] = field(default_factory=dict)

    def write(self, row: int, effect: Effect, names: tuple[str, ...], values: ArrayLike) -> None:
        """Write the chosen numbers for these layers or groups, or for the `network`, into one row.

        Raises
        ------
        ValueError
            If a layer or group does not exist; the message lists the nearest names.
        """
        if effect not in self.chosen:
            self.chosen[effect] = effect.untouched(self.frame)[None].repeat(self.count, axis=0)
        self.chosen[effect][row, self.frame.columns(effect.of, names)] = values

    @property
    def left_out(self) -> np.ndarray:
        """Share of the layers that are left out, shape (N,)."""
        share: np.ndarray = 1 - self._layers().kept_NL.mean(1)
        return share

    def owners(self, counts: Sequence[int]) -> dict[Effect, np.ndarray]:
        """Return for each effect the index of the parameter that changes each of its numbers, for `mixed`.

        Parameters
        ----------
        counts
            Numbers of rows for each parameter. Row 0 changes nothing; in the next `counts[0]` rows only the first
            parameter is changed, in the next `counts[1]` rows only the second, and so on.
        """
        ends = [1, *(1 + np.cumsum(counts))]
        owners = {}
        for effect, array in self.chosen.items():
            owner = np.full(array.shape[1], -1)
            for parameter, (start, end) in enumerate(itertools.pairwise(ends)):
                changed = (array[start:end] != array[0]).any(0)
                assert (owner[changed] == -1).all(), "a number that two parameters change cannot be mixed"
                owner[changed] = parameter
            owners[effect] = np.maximum(owner, 0)
        return owners

    def mixed(self, rows_MP: np.ndarray, owners: Mapping[Effect, np.ndarray]) -> Architectures:
        """Return M architectures; in row m, the numbers of parameter p come from row `rows_MP[m, p]` of this batch.

        Parameters
        ----------
        rows_MP
            Row of this batch for each new architecture and parameter.
        owners
            As returned by `owners`.
        """
        chosen = {
            effect: array[rows_MP[:, owners[effect]], np.arange(array.shape[1])]
            for effect, array in self.chosen.items()
        }
        return Architectures(self.frame, len(rows_MP), chosen)

    def parts(self) -> Parts:
        """Return the layers in their deployed form, by the rules by which the steps build them."""
        frame, layers = self.frame, self._layers()
        removed = layers.removed_units()
        shapes, factors, _ = layers.factors()
        if (layers.kept_NL < 1).any():
            factors = factors.only_kept(layers.kept_NL)
        last = (factors.weights > 0).astype(float)  # the last factor has the bias
        last[:-1] -= last[1:]
        return Parts(
            macs=factors.macs_of_each,
            weights=factors.weights,
            biases=last * (shapes.outputs * frame.biased),
            outputs=factors.array[1],
            inputs=np.concatenate((shapes.group_inputs[None], factors.array[1, :-1])),  # outputs of the factor before
            weight_bits=layers.weight_bits_NL,
            activation_bits=layers.activation_bits_NL,
            levels=layers.levels_NL,
            linear=frame.linear,
            padded=factors.array[3] * layers.padded,
            strided=factors.array[3] * frame.strided,
            grouped=(shapes.groups > 1).astype(float),
            product_macs=frame.products.total(removed, layers.kept_NL, layers.products_NED) - layers.saved_macs_N,
            parameters=frame.parameters.total(removed, layers.kept_NL),
            held=-frame.parameters.count_left_out(layers.kept_NL),
            sums=(layers.kept_NL[:, frame.branch_columns] - 1).sum(1),
            resized=layers.resized_N,
        )

    def _layers(self) -> Layers:
        """Return the layers of all rows after all effects."""
        layers = Layers.untouched(self.frame, self.count)
        for effect, chosen in self.chosen.items():
            effect.apply(chosen, layers)
        return layers
