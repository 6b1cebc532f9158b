"""The attributes of finished layers that costs read, and the layers of many networks as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from objectives.trees import Tree

FLOAT_BITS = 32  # bits of a number that is not quantized


@runtime_checkable
class LowPrecision(Protocol):
    """A layer with a quantized weight or input; widths in bits, 32 if not quantized."""

    weight_bits: int
    activation_bits: int


@runtime_checkable
class Factored(Protocol):
    """A module that replaces one layer by `split_into` thinner ones."""

    split_into: int


@runtime_checkable
class LeftOut(Protocol):
    """A module that replaces a part of a branch that is left out, with `sums_left_out` sums of the network."""

    sums_left_out: int


@runtime_checkable
class Repeating(Protocol):
    """A module that repeats a step, as recurrent layers do.

    Attributes
    ----------
    loops
        Set to capture it as one loop instead of step by step.
    unfused
        Set to capture its steps also where one operator of torch would run them all.
    at_once
        Set to call its layers once for all steps: they do as much work, on other values.
    """

    loops: bool
    unfused: bool
    at_once: bool


class Resize(Protocol):
    """A resize of inputs to a smaller height and width."""

    @property
    def in_file(self) -> bool:
        """Whether an exported file resizes its inputs; otherwise it takes resized inputs."""
        ...

    def resized(self, inputs: Tensor) -> Tensor:
        """Return the inputs at the smaller size."""
        ...


@runtime_checkable
class ResizesInput(Protocol):
    """A network that resizes its input before its first layer."""

    input_resize: Resize


def inputs_of_file(model: nn.Module, inputs: Tree) -> Tree:
    """Return the inputs of a network as its exported file takes them: resized, where the file does not resize them."""
    if isinstance(model, ResizesInput) and not model.input_resize.in_file:
        return model.input_resize.resized(inputs)
    return inputs


def resizes_in_file(model: nn.Module) -> bool:
    """Return whether the exported file of a network resizes its input."""
    return isinstance(model, ResizesInput) and model.input_resize.in_file


class Parts(Protocol):
    """The layers of N networks as arrays that broadcast to (parts, N, layers) unless a shape is given."""

    @property
    def macs(self) -> np.ndarray:
        """Multiply-adds of one example."""
        ...

    @property
    def weights(self) -> np.ndarray:
        """Elements of the weight."""
        ...

    @property
    def biases(self) -> np.ndarray:
        """Elements of the bias."""
        ...

    @property
    def outputs(self) -> np.ndarray:
        """Output channels, 0 where the part does not exist."""
        ...

    @property
    def inputs(self) -> np.ndarray:
        """Input channels of a group of the convolution, 0 where the part does not exist."""
        ...

    @property
    def weight_bits(self) -> np.ndarray:
        """Bits of a weight, 32 for a float."""
        ...

    @property
    def activation_bits(self) -> np.ndarray:
        """Bits of an input, 32 for a float."""
        ...

    @property
    def levels(self) -> np.ndarray:
        """Entries of the codebook of the weight, 0 where the codes are integers."""
        ...

    @property
    def linear(self) -> np.ndarray:
        """Whether the part is a linear layer."""
        ...

    @property
    def padded(self) -> np.ndarray:
        """Whether the part is a convolution with padding."""
        ...

    @property
    def strided(self) -> np.ndarray:
        """Whether the part is a convolution with a stride."""
        ...

    @property
    def grouped(self) -> np.ndarray:
        """Whether the part is a convolution of several groups."""
        ...

    @property
    def product_macs(self) -> np.ndarray:
        """Multiply-adds outside of layers, shape (N,), up to a constant."""
        ...

    @property
    def parameters(self) -> np.ndarray:
        """Parameters outside of layers, shape (N,), up to a constant."""
        ...

    @property
    def held(self) -> np.ndarray:
        """Parameter tensors outside of layers, shape (N,), up to a constant."""
        ...

    @property
    def sums(self) -> np.ndarray:
        """Sums of branches, shape (N,), up to a constant."""
        ...

    @property
    def resized(self) -> np.ndarray:
        """1 where the file resizes its input, 0 otherwise, shape (N,)."""
        ...
