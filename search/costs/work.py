"""The work of each kind in networks, to which latency models are fitted.

Suffixes of array names: `P N L` as in `Parts`, `F` kinds of work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from objectives.layers import FLOAT_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from objectives.layers import Parts

BYTE_BITS = 8  # bits in a byte
OUTPUT_BLOCKS = 8, 16  # output channels that the kernels of ONNX Runtime and of XNNPACK compute together
INPUT_BLOCK = 8  # input channels that XNNPACK's integer kernels multiply together, at each kernel position


@dataclass(frozen=True, slots=True)
class Ends:
    """How many numbers of one example a file takes and returns."""

    taken: float
    returned: float


def work(parts: Parts, ends: Ends) -> np.ndarray:
    """Return the work of each kind in N networks that take and return these numbers, shape (N, F).

    Layers are divided into kinds (convolutions of one pixel, wider ones, grouped ones, linear layers) and, within each,
    by how they compute: in floating point; in floating point with weights of less than a byte, which are unpacked at
    every inference; with integers, and the next layer too; with integers, and the next layer does not. Of the last two,
    those with weights of less than a byte are apart. For each there are multiply-adds with output channels padded to a
    block, and the number of layers; where weights are unpacked, their elements; where dense layers compute with
    integers, multiply-adds with input channels padded too. The remaining kinds are sums over all layers: multiply-adds,
    layers and numbers written where output channels do not fill whole blocks; numbers of the input that the file
    resizes; numbers read, written, and converted between integers and floating point; and the numbers that the file
    takes and returns.
    """
    columns = list(_columns(parts, ends))
    stacked: np.ndarray = np.column_stack(columns)
    return stacked


def layer_arrays(parts: Parts) -> tuple[np.ndarray, ...]:
    """Return macs, weights, outputs, inputs, weight and activation bits, linear and grouped, each (P, N, L)."""
    return np.broadcast_arrays(
        parts.macs, parts.weights, parts.outputs, parts.inputs, parts.weight_bits, parts.activation_bits, parts.linear,
        parts.grouped,
    )  # fmt: skip


def _columns(parts: Parts, ends: Ends) -> Iterator[np.ndarray]:
    macs, weights, outputs, inputs, weight_bits, activation_bits, linear, grouped = layer_arrays(parts)
    present = outputs > 0
    written = outputs * macs / np.maximum(weights, 1)
    first, last = present.copy(), present.copy()
    first[1:] = False
    last[:-1] &= ~present[1:]
    rounded = present & (activation_bits < FLOAT_BITS)
    integer = rounded & (weight_bits < FLOAT_BITS)
    narrow = present & (weight_bits < BYTE_BITS)
    # whether the layer before computes with integers, and whether the layer after rounds its inputs
    from_integer = np.where(first, _before(np.any(integer, axis=0), first[0], 0.0), integer) > 0
    to_rounded = np.where(last, _after(np.any(rounded, axis=0), first[0]), rounded) > 0
    read = np.where(first, _before((written * last).sum(0), first[0], ends.taken), 0.0)
    read[1:] = written[:-1] * present[1:]
    padded = [macs * padding(outputs, block) for block in OUTPUT_BLOCKS]
    both_padded = padded[1] * padding(inputs, INPUT_BLOCK)
    one_pixel = weights <= outputs * inputs
    kinds = (
        present & ~(linear > 0) & ~(grouped > 0) & one_pixel,
        present & ~(linear > 0) & ~(grouped > 0) & ~one_pixel,
        present & (grouped > 0),
        present & (linear > 0),
    )
    ways = (
        ~integer & ~narrow, ~integer & narrow,
        *(integer & side & width for side in (to_rounded, ~to_rounded) for width in (~narrow, narrow)),
    )  # fmt: skip
    for number, kind in enumerate(kinds):
        yield _sum(padded[0] * kind)
        for place, way in enumerate(ways):
            layers = kind & way
            yield _sum(padded[1] * layers)
            yield _sum(layers)
            if place % 2:
                yield _sum(weights * layers)
            if place > 1 and number != 2:  # noqa: PLR2004 - grouped layers have few inputs
                yield _sum(both_padded * layers)
    uneven = present & (outputs % OUTPUT_BLOCKS[0] > 0)
    grouped_layers = kinds[2]
    yield from (_sum(macs * uneven * grouped_layers), _sum(macs * uneven * ~grouped_layers))
    yield from (_sum(uneven), _sum(written * uneven))
    yield np.broadcast_to(parts.resized, (macs.shape[1],)) * ends.taken
    entered, left = rounded & ~from_integer, integer & ~to_rounded
    for numbers in (weights, written, read):
        yield _sum(numbers * present)
    for numbers, layers in ((read, entered), (read, rounded), (written, left)):
        yield _sum(numbers * layers)
        yield _sum(layers)
    yield _sum(first)
    yield _sum(present)
    count = macs.shape[1]
    columns = np.arange(macs.shape[2])
    for end, layers, numbers in (
        (np.where(first[0], columns, macs.shape[2]).min(1), rounded, ends.taken),
        (np.where(first[0], columns, -1).max(1), integer, ends.returned),
    ):  # a file that begins or ends with integers is entered and left through a conversion outside of the runtime
        at_end = np.take_along_axis(np.any(layers, axis=0), end.clip(0, macs.shape[2] - 1)[:, None], 1)[:, 0]
        yield at_end * numbers
        yield at_end.astype(float)
    yield np.full(count, ends.taken + ends.returned)
    yield np.broadcast_to(parts.product_macs, (count,)) - np.min(parts.product_macs, initial=0.0)
    yield np.ones(count)


def _sum(values: np.ndarray) -> np.ndarray:
    total: np.ndarray = values.sum((0, 2), dtype=float)
    return total


def padding(channels: np.ndarray, block: int) -> np.ndarray:
    """Return the factor by which padding to whole blocks increases these numbers of channels."""
    factor: np.ndarray = np.ceil(channels / block) * block / np.maximum(channels, 1)
    return factor


def _before(values_NL: np.ndarray, kept_NL: np.ndarray, start: float) -> np.ndarray:
    """Return for each layer the value of the last kept layer before it, in order of execution."""
    found = np.empty(values_NL.shape)
    current = np.full(len(values_NL), start, dtype=float)
    for layer in range(values_NL.shape[1]):
        found[:, layer] = current
        current = np.where(kept_NL[:, layer], values_NL[:, layer], current)
    return found


def _after(values_NL: np.ndarray, kept_NL: np.ndarray) -> np.ndarray:
    """Return for each layer the value of the next kept layer, 0 for the last one."""
    return _before(values_NL[:, ::-1], kept_NL[:, ::-1], 0.0)[:, ::-1]
