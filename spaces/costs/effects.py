"""Effects: how the numbers that steps choose change the layers of many networks at once.

Legend: `N` networks, `L` layers, `G` groups of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from spaces.costs.factors import Factors, Shapes
from spaces.network.layers import FLOAT_BITS

if TYPE_CHECKING:
    from spaces.costs.factors import Splitting
    from spaces.costs.frame import Frame


@dataclass(slots=True)
class Layers:
    """The layers of N networks, which effects change one after the other; arrays broadcast to (N, L) or as named.

    Attributes
    ----------
    frame
        The teacher.
    units_NG
        Kept units of each group.
    kept_NL
        1 for a layer that is kept, 0 for one that is left out.
    shapes
        Kernels, groups and the number of their applications, before any layer is split. `outputs` and `inputs` are
        those of the teacher, and what an effect writes to them is ignored: see `channels`. An effect may change
        `groups`, `height`, `width`, `area`, `plane`; for `positions`, `reads` and `columns` see `run_at`.
    padded
        1 for a convolution with padding, 0 otherwise.
    splitting, fractions_NL
        How layers are split, None if no layer is, and the fraction of its full rank that each layer keeps; 1 where it
        is not split.
    weight_bits_NL, activation_bits_NL
        Bits of a weight and of an input, 32 for a float.
    levels_NL
        Entries of the codebook of the weights; 0 where the codes are integers.
    products_NED
        Sizes of the matrix products outside of layers, before channels are removed, shape (N or 1, products, D).
    saved_macs_N
        Multiply-adds that are saved outside of layers and of these products, shape (N,).
    resized_N
        1 where the file resizes its input, 0 otherwise, shape (N,).
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
    products_NED: np.ndarray
    saved_macs_N: np.ndarray
    resized_N: np.ndarray
    splitting: Splitting | None = None

    @classmethod
    def untouched(cls, frame: Frame, count: int) -> Layers:
        """Return the layers of `count` copies of the teacher."""
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
            products_NED=frame.products.sizes_ED[None],
            saved_macs_N=np.zeros(count),
            resized_N=np.zeros(count),
        )

    def run_at(self, sizes_N: np.ndarray) -> None:
        """Let each network run at one of the sizes of the input of the frame, given by their numbers.

        Raises
        ------
        ValueError
            If layers are split already: whether that saves multiply-adds was decided at the whole size.
        """
        if self.splitting is not None:
            raise ValueError("the size of the input must be chosen before ranks; put Resolution() before Ranks()")
        sizes = self.frame.sizes
        applications = {name: table_SL[sizes_N] for name, table_SL in sizes.applications.items()}
        self.shapes = self.shapes._replace(**applications)
        self.products_NED, self.saved_macs_N = sizes.products_SED[sizes_N], sizes.saved_macs_S[sizes_N]

    def removed_units(self) -> np.ndarray:
        """Return the removed units of each group, shape (N, G); before and after a left-out layer, equal numbers."""
        units_NG = self.units_NG.copy() if self.frame.joined_groups else self.units_NG
        for layer, before, after in self.frame.joined_groups:  # in order of execution
            units_NG[:, after] = np.where(self.kept_NL[:, layer] > 0, units_NG[:, after], units_NG[:, before])
        removed: np.ndarray = self.frame.units - units_NG
        return removed

    def channels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the kept outputs, the kept inputs and the groups of each layer, shape (N, L) each."""
        frame = self.frame
        lost = (self.removed_units() @ frame.channels_per_unit_GC).reshape(-1, *frame.channels_3L.shape)
        outputs, inputs, groups = (frame.channels_3L - lost).transpose(1, 0, 2)
        return outputs, inputs, groups * (self.shapes.groups / frame.shapes.groups)

    def factors(self) -> tuple[Shapes, Factors, np.ndarray]:
        """Return the kept shapes, the factors of all layers, and which layers are split, shape (N, L).

        A layer is split if that saves multiply-adds.
        """
        outputs, inputs, groups = self.channels()
        shapes = Shapes(outputs, inputs, groups, outputs / groups, inputs / groups, *self.shapes[5:])
        weights = shapes.outputs * shapes.group_inputs * shapes.area
        whole = Factors.of((weights, shapes.outputs, shapes.positions, 1))
        chosen = self.fractions_NL < 1
        if self.splitting is None or not np.count_nonzero(chosen):
            return shapes, whole, np.zeros_like(chosen)
        split = self.splitting.factors(shapes, self.fractions_NL)
        is_split = chosen & (split.macs < weights * shapes.positions)
        return shapes, split.where(is_split, whole), is_split

    def settle_splits(self) -> np.ndarray:
        """Return which layers earlier steps have split, shape (N, L), and let no later effect split another one."""
        _, _, is_split = self.factors()
        self.fractions_NL = np.where(is_split, self.fractions_NL, 1)
        return is_split


class Effect(Protocol):
    """A kind of number that a step chooses for each layer, each group or the network, and how it changes layers.

    Implementations are frozen dataclasses; equal effects share one array of numbers.
    """

    @property
    def of(self) -> Literal["layer", "group of channels", "network"]:
        """Whether there is a number for each layer, for each group, or one for the network."""
        ...

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return the numbers that change nothing: one for each layer or group of the frame, or one."""
        ...

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Change the layers of N networks.

        Parameters
        ----------
        chosen
            The numbers, with one row for each network; must not be changed in place.
        layers
            The layers after the effects of earlier steps; changed in place.
        """
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """An effect whose numbers are one of the arrays of `Layers`.

    Attributes
    ----------
    array
        Name of the array, which has a number for each layer.
    unchanged
        The number that changes nothing.
    """

    array: str
    unchanged: float
    of: ClassVar[Literal["layer"]] = "layer"

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return the number that changes nothing, for every layer."""
        return np.full(len(frame.layers), self.unchanged)

    def apply(self, chosen: np.ndarray, layers: Layers) -> None:
        """Replace the array by the chosen numbers."""
        setattr(layers, self.array, chosen)
