"""How many bytes the exported file will have, told from the layers before there is a file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from objectives.layers import FLOAT_BITS, Factored, LeftOut, LowPrecision
from objectives.runtimes.onnx.runtime import OnnxRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives.layers import Parts
    from objectives.objective import Direction
    from objectives.runtimes.file_layout import FileLayout
    from objectives.runtimes.runtime import Runtime

BYTE_BITS = 8
FLOATING = 1, FLOAT_BITS, FLOAT_BITS, 0  # output channels (any number of them), widths, levels
Numbers = Any  # a number, or an array of one a layer
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True)
class SizeBytes:
    """Bytes of the network's file as predicted from its layers; the front shows the real file beside it.

    Parameters
    ----------
    runtime
        Whose file it is: codes count at the width in which that stores them.
    beside, whatever
        Bytes of what the runtime's layout does not know: for each tensor of parameters outside of layers, of which
        operators such as attention have some, and of the whole network; see `weighed`.
    """

    runtime: Runtime = field(default_factory=OnnxRuntime)
    per_tensor: float = field(default=0.0, repr=False, metadata={"found": True})
    per_network: float = field(default=0.0, repr=False, metadata={"found": True})
    name: ClassVar[str] = "size_bytes"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the prediction in bytes."""
        inside = {
            id(child) for module in model.modules() if isinstance(module, LowPrecision) for child in module.children()
        }
        layout = self.runtime.layout
        total, kinds = layout.graph + self.per_network + self.per_tensor * _held(model), []
        for module in model.modules():
            if isinstance(module, LowPrecision):
                total += _low_precision(layout, module)
                kinds += [_kind(module)]
            elif id(module) not in inside:
                numbers = sum(parameter.numel() for parameter in module.parameters(recurse=False))
                total += (
                    float(_bytes(layout, _node_of(layout, module), floats=numbers))
                    if _is_layer(module)
                    else 4 * numbers
                )
                kinds += [FLOATING] * _is_layer(module)
            if isinstance(module, LeftOut):
                total -= layout.sum * module.sums_left_out
            if isinstance(module, Factored):
                linear = any(isinstance(inner, nn.Linear) for inner in module.modules())
                grouped = any(getattr(inner, "groups", 1) > 1 for inner in module.modules())
                total -= float(_factor(layout, linear, grouped)) * (module.split_into - 1)
        if kinds:
            total += _between(layout, *np.array(kinds).T[:, None, None])[0]
        return float(round(total))

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the same prediction from the shapes."""
        layout = self.runtime.layout
        each = _bytes(
            layout,
            _node(layout, parts.linear, parts.padded, parts.strided, parts.grouped),
            floats=parts.biases,
            weights=parts.weights,
            outputs=parts.outputs,
            weight_bits=parts.weight_bits,
            activation_bits=parts.activation_bits,
            levels=parts.levels,
        )
        there = (parts.outputs > 0).astype(float)
        total: np.ndarray = (each * there).sum((0, 2)) + 4 * parts.parameters
        total -= (_factor(layout, parts.linear, parts.grouped) * there[1:]).sum((0, 2))
        total += layout.sum * parts.sums
        if self.per_tensor:
            total += self.per_tensor * parts.held
        if layout.zeros or layout.mixed or layout.ends:
            total += _between(layout, parts.outputs, parts.weight_bits, parts.activation_bits, parts.levels)
        return total

    def calibrated(self, model: nn.Module, size: Callable[[], float]) -> SizeBytes:
        """Return the prediction put right by the file of one network, for those that are made of it.

        What its file has more than was told belongs to the tensors of parameters outside of layers, as in LayerNorm,
        which go with their branches; without such, or where it has less, to all networks alike, as do their pooling
        and their answer. A file that is smaller by more than a graph holds numbers once that the network has twice, and
        nothing is put right.

        Parameters
        ----------
        model
            A finished network.
        size
            Gives the bytes of its file.
        """
        count, plain = _held(model), replace(self, per_tensor=0.0, per_network=0.0)
        more = size() - plain(model)
        if count and more > 0:
            return replace(plain, per_tensor=more / count)
        return replace(plain, per_network=more) if more > -self.runtime.layout.graph else plain


def _held(model: nn.Module) -> int:
    """Return how many tensors of parameters lie outside of layers."""
    return sum(
        len(list(module.parameters(recurse=False)))
        for module in model.modules()
        if not _is_layer(module) and not isinstance(module, LowPrecision)
    )


@cache
def _tables(layout: FileLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bits stored for a weight, bytes more for it, and bytes more for a channel, by widths of weight, inputs."""
    stored = np.full((FLOAT_BITS + 1, FLOAT_BITS + 1), float(FLOAT_BITS))
    more, scale = np.zeros_like(stored), np.zeros_like(stored)
    for bits in range(FLOAT_BITS):
        kinds = (
            (slice(FLOAT_BITS), layout.integer_bits, layout.integer, layout.integer_scale),
            (FLOAT_BITS, layout.floating_bits, layout.floating, layout.floating_scale),
        )
        for inputs, widths, whole, channel in kinds:
            fits = [width for width in widths if bits <= width]
            if fits:
                stored[bits, inputs], more[bits, inputs], scale[bits, inputs] = fits[0], whole, channel
    return stored, more, scale


def _bytes(
    layout: FileLayout,
    node: Numbers,
    *,
    floats: Numbers,
    weights: Numbers = 0,
    outputs: Numbers = 0,
    weight_bits: Numbers = FLOAT_BITS,
    activation_bits: Numbers = FLOAT_BITS,
    levels: Numbers = 0,
) -> Numbers:
    """Return what one layer takes, with its rounding; the floats are its bias, and whatever else is not coded."""
    stored, more, scale = _tables(layout)
    width: Numbers = weight_bits
    if np.count_nonzero(levels):  # quicker than `any` on few
        coded = layout.codebook is not None
        index = np.ceil(np.log2(np.maximum(2, levels))).astype(int) if coded else FLOAT_BITS
        width = np.where(levels, index, width)
    entries = more[width, activation_bits]
    if layout.codebook is not None:
        entries = np.where(levels, layout.codebook + 4 * levels, entries)
    rounding = layout.inputs * (activation_bits < FLOAT_BITS) + layout.clip * (activation_bits < BYTE_BITS) + entries
    scales = outputs * scale[width, activation_bits]
    return node + rounding + np.ceil(weights * stored[width, activation_bits] / BYTE_BITS) + 4.0 * floats + scales


def _between(
    layout: FileLayout, outputs: Numbers, weight_bits: Numbers, activation_bits: Numbers, levels: Numbers
) -> np.ndarray:
    """Return what N networks take that is no single layer's, shape (N,); the rest has shapes as in `Parts`."""
    stored, *_ = _tables(layout)
    there = outputs > 0
    coded = there & (stored[weight_bits, activation_bits] < FLOAT_BITS) & (levels == 0)
    channels_NL = np.moveaxis(outputs * coded, 1, 0).reshape(coded.shape[1], -1)
    channels_NL.sort(axis=1)
    distinct_N = (channels_NL * (np.diff(channels_NL, axis=1, prepend=0) > 0)).sum(1)
    between_N, ends_N = _changes(coded & (activation_bits < FLOAT_BITS), there)
    total: np.ndarray = layout.zeros * distinct_N + layout.mixed * between_N + layout.ends * ends_N
    return total


def _changes(integers: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how often N networks go from floats to integers or back, between layers and at their ends, shapes (N,)."""
    integers_NL, there_NL = (np.moveaxis(each, 0, 2).reshape(each.shape[1], -1) for each in (integers, there))
    places_NL = np.where(there_NL, np.arange(there_NL.shape[1]), there_NL.argmax(1)[:, None])
    run_NL = np.take_along_axis(integers_NL, np.maximum.accumulate(places_NL, axis=1), axis=1)
    return (run_NL[:, 1:] != run_NL[:, :-1]).sum(1), run_NL[:, 0].astype(int) + run_NL[:, -1]


def _kind(module: LowPrecision) -> tuple[int, int, int, int]:
    """Return output channels, widths of weight and inputs, and levels, of a layer of which either is rounded."""
    assert isinstance(module, nn.Module)
    if "codes" not in dict(module.named_parameters()):
        return 1, FLOAT_BITS, module.activation_bits, 0
    outputs, levels = (module.get_buffer(name).numel() for name in ("scale", "levels"))
    return outputs, module.weight_bits, module.activation_bits, levels


def _node(layout: FileLayout, linear: Numbers, padded: Numbers, strided: Numbers, grouped: Numbers) -> Numbers:
    attributes = layout.padded * padded + (layout.strided + layout.apart * padded) * strided + layout.grouped * grouped
    return np.where(linear, layout.linear, layout.convolution + attributes)


def _factor(layout: FileLayout, linear: Numbers, grouped: Numbers) -> Numbers:
    return np.where(linear, layout.linear_factor, layout.factor + layout.grouped_factor * grouped)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def _node_of(layout: FileLayout, layer: nn.Module) -> Numbers:
    if not isinstance(layer, CONVOLUTIONS):
        return layout.linear
    padded = layer.padding == "same" or any(layer.padding)
    return _node(layout, 0, padded, max(layer.stride) > 1, layer.groups > 1)


def _low_precision(layout: FileLayout, module: LowPrecision) -> float:
    """Return the bytes of one layer whose weight or input is rounded."""
    assert isinstance(module, nn.Module)
    (layer,) = module.children()
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    weights = sizes.pop("codes", 0)
    outputs, weight_bits, activation_bits, levels = _kind(module)
    return float(
        _bytes(
            layout,
            _node_of(layout, layer),
            floats=sum(sizes.values()),
            weights=weights,
            outputs=outputs,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            levels=levels,
        )
    )
