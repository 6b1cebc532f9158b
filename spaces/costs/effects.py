"""Effects: how the numbers that steps choose change the layers of many networks at once.

Legend: `N` networks, `L` layers, `G` groups of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from spaces.network.layers import FLOAT_BITS

if TYPE_CHECKING:
    from spaces.costs.factors import Shapes, Splitting
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
        Kernels and the number of their applications, before any layer is split. Their channels are those of the
        teacher; the kept channels are computed from the units.
    padded
        1 for a convolution with padding, 0 otherwise.
    splitting, fractions_NL
        How layers are split, None if no layer is, and the fraction of its full rank that each layer keeps; 1 where it
        is not split.
    weight_bits_NL, activation_bits_NL
        Bits of a weight and of an input, 32 for a float.
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
        )


class Effect(Protocol):
    """A kind of number that a step chooses for each layer or group, and how it changes layers.

    Implementations are frozen dataclasses; equal effects share one array of numbers.
    """

    @property
    def of(self) -> Literal["layer", "group of channels"]:
        """Whether there is a number for each layer or for each group."""
        ...

    def untouched(self, frame: Frame) -> np.ndarray:
        """Return the numbers that change nothing, one for each layer or group of the frame."""
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
