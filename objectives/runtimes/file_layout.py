"""The bytes that the file of a runtime spends on each layer, from which the size of a file is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Bytes of a file in addition to the weights themselves, and the bit widths in which it stores weights.

    The values are read off exported files.

    Parameters
    ----------
    graph
        Bytes of a file without layers.
    convolution, linear
        Bytes of a layer, including one activation after it: there is about one activation a layer.
    factor, linear_factor
        Bytes saved by a convolution and by a linear layer that is a factor of a decomposed layer, but not its last
        factor: no activation follows it.
    grouped_factor
        Bytes that such a convolution saves in addition if it has several groups.
    padded, strided, grouped
        Bytes added to a convolution that has padding, a stride, or several groups.
    apart
        Bytes added to a convolution that has both padding and a stride.
    sum
        Bytes of a sum of branches.
    resize
        Bytes of the resize of the input.
    floating, integer
        Bytes added by an integer weight if its layer computes in floating point, and if it computes with integers.
    floating_scale, integer_scale
        Bytes added by each output channel of such a weight.
    floating_bits, integer_bits
        Bit widths in which such a weight can be stored, ascending; a weight that needs more takes 32 bits.
    tensor
        Bytes of a parameter tensor outside of layers, as LayerNorm and attention have, with its operators. They depend
        on the network, so that no layout has them: `SizeBytes.calibrated` reads them off its files.
    outside
        Bytes of a number in such a tensor; less than 4 if files leave out what the network never reads, as rows of a
        table of positions.
    codebook
        Bytes added by a weight of indices and its table; None if the file stores the numbers that the indices denote.
    zeros
        Bytes added by each output channel of integer weights, once for all weights with the same number of channels.
    mixed, ends
        Bytes of a conversion between integers and floating point, between two layers, and at the input or the output.
    inputs, clip
        Bytes added by rounding the inputs of a layer, and by rounding them to less than 8 bits, for any weight.
    """

    graph: float
    convolution: float
    linear: float
    factor: float = 0
    linear_factor: float = 0
    grouped_factor: float = 0
    padded: float = 0
    strided: float = 0
    grouped: float = 0
    apart: float = 0
    sum: float = 0
    resize: float = 0
    floating: float = 0
    integer: float = 0
    floating_scale: float = 4
    integer_scale: float = 4
    floating_bits: tuple[int, ...] = ()
    integer_bits: tuple[int, ...] = ()
    codebook: float | None = None
    zeros: float = 0
    mixed: float = 0
    ends: float = 0
    inputs: float = 0
    clip: float = 0
    tensor: float = 0
    outside: float = 4


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack 8-bit integers to 2, 4 or 8 bits each; the first integer of a byte takes its lowest bits."""
    per_byte = 8 // bits
    rows = np.pad(codes.reshape(-1).view(np.uint8) & (2**bits - 1), (0, -codes.size % per_byte)).reshape(-1, per_byte)
    packed: np.ndarray = np.bitwise_or.reduce(rows << (np.arange(per_byte) * bits), axis=1).astype(np.uint8)
    return packed
