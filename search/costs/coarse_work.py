"""The work of each kind in networks, in few kinds, for costs that are only measured on whole networks.

Suffixes of array names: `N` and `P` as in `Parts`, `F` kinds of work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from objectives.layers import FLOAT_BITS
from search.costs.work import BYTE_BITS, INPUT_BLOCK, OUTPUT_BLOCKS, layer_arrays, padding

if TYPE_CHECKING:
    from objectives.layers import Parts


def coarse_work(parts: Parts) -> np.ndarray:
    """Return the work of each kind in each network, shape (N, F).

    The kinds of work, in order:

    - multiply-adds with output channels padded to blocks of 8, then of 16: of dense floating-point convolutions, dense
      integer convolutions, grouped convolutions, and linear layers;
    - multiply-adds of dense integer convolutions with input channels padded to blocks (a first layer has few);
    - multiply-adds without padding: of all layers, of grouped integer convolutions, and of convolutions whose weights
      of less than a byte are unpacked at every inference (integer dense, integer grouped, floating-point dense,
      floating-point grouped);
    - bits of the weights; numbers written; numbers written by layers with quantized inputs;
    - layers; layers with quantized inputs; layers with unpacked weights (integer, floating-point);
    - multiply-adds of other products; and the constant 1.
    """
    macs, weights, outputs, inputs, weight_bits, activation_bits, linear, grouped = layer_arrays(parts)
    present = outputs > 0
    padded_outputs = [macs * padding(outputs, block) for block in OUTPUT_BLOCKS]
    padded_inputs = macs * padding(inputs, INPUT_BLOCK)
    written = outputs * macs / np.maximum(weights, 1)
    quantized = present & (activation_bits < FLOAT_BITS)
    integer = quantized & (weight_bits < FLOAT_BITS)
    is_grouped = grouped > 0
    dense = present & ~(linear > 0) & ~is_grouped
    unpacked = [present & (weight_bits < BYTE_BITS) & kind for kind in (integer, ~integer)]
    kinds = (
        *(
            padded * kind
            for padded in padded_outputs for kind in (dense & ~integer, dense & integer, is_grouped, linear > 0)
        ),
        padded_inputs * (dense & integer), macs, macs * (is_grouped & integer),
        *(macs * (kind & layers) for kind in unpacked for layers in (dense, is_grouped)),
        weights * weight_bits, written, written * quantized, present, quantized, *unpacked,
    )  # fmt: skip
    sums = [kind.sum((0, 2)) for kind in kinds]
    return np.column_stack([*sums, parts.product_macs, np.ones(len(sums[0]))])
