"""What a finished layer tells of itself, and what is told of many that are not built yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

FLOAT_BITS = 32  # width of a number that is not rounded


@runtime_checkable
class LowPrecision(Protocol):
    """A module whose weight is stored, and whose input is rounded, at these widths (32: not at all)."""

    weight_bits: int
    activation_bits: int


@runtime_checkable
class Factored(Protocol):
    """A module that computes one layer by so many thinner ones."""

    split_into: int


@runtime_checkable
class LeftOut(Protocol):
    """A module that stands for a part of a branch that is left out, and with it so many sums."""

    sums_left_out: int


class Parts(Protocol):
    """The layers of N networks in numbers, arrays that broadcast to (parts, N, layers) unless said otherwise."""

    @property
    def macs(self) -> np.ndarray:
        """Multiply-adds of one example."""
        ...

    @property
    def weights(self) -> np.ndarray:
        """Numbers in the weight."""
        ...

    @property
    def biases(self) -> np.ndarray:
        """Numbers in the bias."""
        ...

    @property
    def outputs(self) -> np.ndarray:
        """Output channels, 0 where there is no such layer."""
        ...

    @property
    def inputs(self) -> np.ndarray:
        """Input channels of a group, 0 where there is no such layer."""
        ...

    @property
    def weight_bits(self) -> np.ndarray:
        """Width of a weight, 32 for a float."""
        ...

    @property
    def activation_bits(self) -> np.ndarray:
        """Width of an input, 32 for a float."""
        ...

    @property
    def levels(self) -> np.ndarray:
        """Entries of the weight's codebook, 0 where codes are integers."""
        ...

    @property
    def linear(self) -> np.ndarray:
        """Whether it is a linear layer."""
        ...

    @property
    def padded(self) -> np.ndarray:
        """Whether it is a convolution with padding."""
        ...

    @property
    def strided(self) -> np.ndarray:
        """Whether it is a convolution with a stride."""
        ...

    @property
    def grouped(self) -> np.ndarray:
        """Whether it is a convolution of several groups."""
        ...

    @property
    def product_macs(self) -> np.ndarray:
        """Multiply-adds outside of layers, shape (N,), but for a constant."""
        ...

    @property
    def parameters(self) -> np.ndarray:
        """Numbers held outside of layers, shape (N,), but for a constant."""
        ...

    @property
    def held(self) -> np.ndarray:
        """Tensors of those numbers, shape (N,), but for a constant."""
        ...

    @property
    def sums(self) -> np.ndarray:
        """Sums of branches, shape (N,), but for a constant."""
        ...
