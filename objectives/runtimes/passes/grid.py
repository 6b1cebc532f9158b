"""The levels on which integer kernels round a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

from objectives.runtimes.errors import ExportError

if TYPE_CHECKING:
    from torch import fx

INT8_MIN, INT8_MAX = -128, 127
_OPS = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = _OPS.quantize_per_tensor.default, _OPS.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT = _OPS.dequantize_per_channel.default


class Grid(NamedTuple):
    """The levels of a tensor, in the order of the arguments of a quantizer."""

    scale: float
    zero: int
    lowest: int = INT8_MIN
    highest: int = INT8_MAX
    dtype: torch.dtype = torch.int8

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest number on the grid."""
        return (self.lowest - self.zero) * self.scale, (self.highest - self.zero) * self.scale

    def is_narrower(self, other: Grid) -> bool:
        """Return whether the grid ends more than a step of another one before it, so that it clips."""
        (low, high), (other_low, other_high) = self.ends, other.ends
        return low > other_low + other.scale or high < other_high - other.scale

    @classmethod
    def over(cls, low: float, high: float) -> Grid:
        """Return the grid of 8 bits over a range that is extended to zero; zero is exactly on the grid."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (INT8_MAX - INT8_MIN) or 1.0  # the range of a tensor of zeros is empty
        return cls(scale, round(INT8_MIN - low / scale))

    @classmethod
    def of(cls, quantizer: fx.Node) -> Grid:
        """Return the grid of a quantizer."""
        arguments: Any = quantizer.args[1:]
        return cls(*arguments)

    @classmethod
    def signed(cls, arguments: tuple[Any, ...]) -> Grid:
        """Return the grid of signed integers for the arguments of a quantizer.

        Raises
        ------
        ExportError
            If it does not have 8 bits.
        """
        scale, zero, lowest, highest, dtype = arguments
        if dtype == torch.int8:
            return cls(*arguments)
        if highest - lowest != INT8_MAX - INT8_MIN:
            raise ExportError(
                "this runtime rounds inputs of layers to 8 bits or not at all, but got "
                f"{int(highest + 1).bit_length() - 1} bits; BitWidths(runtime=...) offers the widths that it supports"
            )
        return cls(scale, zero + INT8_MIN, INT8_MIN, INT8_MAX)
