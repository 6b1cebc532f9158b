"""What the file of a runtime spends on each layer, so that its size can be told before there is one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Bytes beside the numbers that a file stores, read off exported files, and the widths in which it stores them.

    Parameters
    ----------
    graph
        Of a file without layers.
    convolution, linear
        Of a layer, with an activation behind it, of which there is about one a layer.
    factor, linear_factor
        What a convolution and a linear layer take less that are a factor of one, and not its last: no activation is
        behind them; and
    grouped_factor
        such a convolution of several groups less than one of one.
    padded, strided, grouped
        What such a convolution takes more, and
    apart
        one that is both padded and strided.
    sum
        Of a sum of branches.
    floating, integer
        What an integer weight takes more where its layer computes in floating point, and where with integers.
    floating_scale, integer_scale
        The same for each of its output channels.
    floating_bits, integer_bits
        The widths in which it is stored, ascending; a wider one takes 32.
    codebook
        What a weight of indices and its table take more; None where it is stored as the numbers that it stands for.
    zeros
        What integer weights take more for each of their output channels, once for all weights of as many channels.
    mixed, ends
        What changing between integers and floating point takes from one layer to the next, and at the inputs or the
        answers.
    inputs, clip
        What rounding a layer's inputs takes more, and what at less than 8 bits, whatever its weight is.
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


def joined(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return integers of a byte at so many bits each, the first of a byte in its lowest bits."""
    each = 8 // bits
    rows = np.pad(codes.reshape(-1).view(np.uint8) & (2**bits - 1), (0, -codes.size % each)).reshape(-1, each)
    joined: np.ndarray = np.bitwise_or.reduce(rows << (np.arange(each) * bits), axis=1).astype(np.uint8)
    return joined
