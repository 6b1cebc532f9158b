"""The size of the exported file, predicted from the layers before there is a file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from objectives.finished_layers import CONVOLUTION_KINDS, is_layer, wrapped_in
from objectives.layers import FLOAT_BITS, Factored, LeftOut, LowPrecision, Repeating, resizes_in_file
from objectives.runtimes.onnx.runtime import OnnxRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives.layers import Parts
    from objectives.objective import Direction
    from objectives.runtimes.file_layout import FileLayout
    from objectives.runtimes.runtime import Runtime

BYTE_BITS = 8  # bits in a byte
FLOAT_LAYER = 1, FLOAT_BITS, FLOAT_BITS, 0  # output channels (any), bits of weight and input, levels: see `_summary`
Numbers = Any  # a number, or an array of one number a layer: the formulas hold for both


@dataclass(frozen=True, slots=True)
class SizeBytes:
    """Bytes of the file of a network, predicted from its layers; the front also shows the size of the real file.

    Parameters
    ----------
    runtime
        The runtime that writes the file; codes count at the width in which it stores them.
    per_tensor, per_network
        Corrections in bytes for what the layout of the runtime does not model: for each parameter tensor outside of
        layers (operators such as attention have some), and for the whole network. Set by `calibrated`.
    """

    runtime: Runtime = field(default_factory=OnnxRuntime)
    per_tensor: float = field(default=0.0, repr=False, metadata={"found": True})
    per_network: float = field(default=0.0, repr=False, metadata={"found": True})
    name: ClassVar[str] = "size_bytes"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the prediction in bytes."""
        layout, wrapped = self.runtime.layout, wrapped_in(model)
        total, summaries = layout.graph + self.per_network + self.per_tensor * _tensors_outside_layers(model), []
        for module in model.modules():
            if isinstance(module, LowPrecision):
                total += _low_precision_bytes(layout, module)
                summaries += [_summary(module)]
            elif id(module) not in wrapped:
                numbers = sum(parameter.numel() for parameter in module.parameters(recurse=False))
                total += (
                    float(_layer_bytes(layout, _node_bytes_of(layout, module), floats=numbers))
                    if is_layer(module)
                    else 4 * numbers
                )
                summaries += [FLOAT_LAYER] * is_layer(module)
            if isinstance(module, LeftOut):
                total -= layout.sum * module.sums_left_out
            if isinstance(module, Factored):
                linear = any(isinstance(inner, nn.Linear) for inner in module.modules())
                grouped = any(getattr(inner, "groups", 1) > 1 for inner in module.modules())
                total -= float(_factor_saving(layout, linear, grouped)) * (module.split_into - 1)
        total += layout.resize * resizes_in_file(model)
        if summaries:
            total += _network_bytes(layout, *np.array(summaries).T[:, None, None])[0]
        return float(round(total))

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the same prediction from the shapes of the layers."""
        layout = self.runtime.layout
        each = _layer_bytes(
            layout,
            _node_bytes(layout, parts.linear, parts.padded, parts.strided, parts.grouped),
            floats=parts.biases,
            weights=parts.weights,
            outputs=parts.outputs,
            weight_bits=parts.weight_bits,
            activation_bits=parts.activation_bits,
            levels=parts.levels,
        )
        exists = (parts.outputs > 0).astype(float)
        total: np.ndarray = (each * exists).sum((0, 2)) + 4 * parts.parameters
        saving = _factor_saving(layout, parts.linear, parts.grouped) * exists
        total -= saving[1:].sum((0, 2))
        total += layout.sum * parts.sums + layout.resize * parts.resized
        if self.per_tensor:
            total += self.per_tensor * parts.held
        if layout.zeros or layout.mixed or layout.ends:
            total += _network_bytes(layout, parts.outputs, parts.weight_bits, parts.activation_bits, parts.levels)
        return total

    def calibrated(self, model: nn.Module, size: Callable[[], float]) -> SizeBytes:
        """Return the prediction corrected by the file of one network, for networks that are compressed from it.

        Bytes that the prediction misses are attributed to the parameter tensors outside of layers, as in LayerNorm,
        which are removed with their branches. Without such tensors, or where the prediction is too large, the
        difference is attributed to the network as a whole, such as to its pooling and its output. If the prediction is
        too large by more than the bytes of a graph, the file stores shared numbers once that the network holds twice,
        and nothing is corrected. Loops of the network are taken to compute with integers in the others.

        Parameters
        ----------
        model
            A finished network.
        size
            Returns the bytes of its file.
        """
        count, plain = _tensors_outside_layers(model), replace(self, per_tensor=0.0, per_network=0.0)
        missed = size() - plain(model)
        if count and missed > 0:
            return replace(plain, per_tensor=missed / count)
        missed += self.runtime.layout.loop * sum(isinstance(module, Repeating) for module in model.modules())
        return replace(plain, per_network=missed) if missed > -self.runtime.layout.graph else plain


def _tensors_outside_layers(model: nn.Module) -> int:
    """Return the number of parameter tensors outside of layers."""
    return sum(
        len(list(module.parameters(recurse=False)))
        for module in model.modules()
        if not is_layer(module) and not isinstance(module, LowPrecision)
    )


@cache
def _tables(layout: FileLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three tables indexed by the bits of weight and input: stored bits, bytes a weight tensor, bytes a channel.

    The stored bits are those of one element; the bytes are what quantization adds.
    """
    stored = np.full((FLOAT_BITS + 1, FLOAT_BITS + 1), float(FLOAT_BITS))
    tensor, channel = np.zeros_like(stored), np.zeros_like(stored)
    for bits in range(FLOAT_BITS):
        kinds = (
            (slice(FLOAT_BITS), layout.integer_bits, layout.integer, layout.integer_scale),
            (FLOAT_BITS, layout.floating_bits, layout.floating, layout.floating_scale),
        )
        for inputs, widths, per_tensor, per_channel in kinds:
            fits = [width for width in widths if bits <= width]
            if fits:
                stored[bits, inputs], tensor[bits, inputs], channel[bits, inputs] = fits[0], per_tensor, per_channel
    return stored, tensor, channel


def _layer_bytes(
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
    """Return the bytes of one layer with its quantization; `floats` counts its bias and all else stored as floats."""
    stored, tensor, channel = _tables(layout)
    width: Numbers = weight_bits
    if np.count_nonzero(levels):  # faster than `any` on small arrays
        indexed = layout.codebook is not None
        index = np.ceil(np.log2(np.maximum(2, levels))).astype(int) if indexed else FLOAT_BITS
        width = np.where(levels, index, width)
    added = tensor[width, activation_bits]
    if layout.codebook is not None:
        added = np.where(levels, layout.codebook + 4 * levels, added)
    rounding = layout.inputs * (activation_bits < FLOAT_BITS) + layout.clip * (activation_bits < BYTE_BITS) + added
    scales = outputs * channel[width, activation_bits]
    return node + rounding + np.ceil(weights * stored[width, activation_bits] / BYTE_BITS) + 4.0 * floats + scales


def _network_bytes(
    layout: FileLayout, outputs: Numbers, weight_bits: Numbers, activation_bits: Numbers, levels: Numbers
) -> np.ndarray:
    """Return the bytes of N networks that belong to no single layer, shape (N,); the inputs have shapes as in `Parts`.

    These are the zero points, which all weights with the same number of channels share, and the conversions between
    integers and floating point.
    """
    stored, *_ = _tables(layout)
    exists = outputs > 0
    integer = exists & (stored[weight_bits, activation_bits] < FLOAT_BITS) & (levels == 0)
    channels_NL = np.moveaxis(outputs * integer, 1, 0).reshape(integer.shape[1], -1)
    channels_NL.sort(axis=1)
    distinct_N = (channels_NL * (np.diff(channels_NL, axis=1, prepend=0) > 0)).sum(1)
    between_N, ends_N = _conversions(integer & (activation_bits < FLOAT_BITS), exists)
    total: np.ndarray = layout.zeros * distinct_N + layout.mixed * between_N + layout.ends * ends_N
    return total


def _conversions(integers: np.ndarray, exists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the conversions between floats and integers in N networks: between layers, and at both ends, shapes (N,).

    A layer that does not exist counts like the layer before it.
    """
    integers_NL, exists_NL = (np.moveaxis(each, 0, 2).reshape(each.shape[1], -1) for each in (integers, exists))
    places_NL = np.where(exists_NL, np.arange(exists_NL.shape[1]), exists_NL.argmax(1)[:, None])
    filled_NL = np.take_along_axis(integers_NL, np.maximum.accumulate(places_NL, axis=1), axis=1)
    return (filled_NL[:, 1:] != filled_NL[:, :-1]).sum(1), filled_NL[:, 0].astype(int) + filled_NL[:, -1]


def _summary(module: LowPrecision) -> tuple[int, int, int, int]:
    """Return output channels, bits of weight and input, and codebook levels of a layer that quantizes either."""
    assert isinstance(module, nn.Module)
    if "codes" not in dict(module.named_parameters()):
        return 1, FLOAT_BITS, module.activation_bits, 0
    outputs, levels = (module.get_buffer(name).numel() for name in ("scale", "levels"))
    return outputs, module.weight_bits, module.activation_bits, levels


def _node_bytes(layout: FileLayout, linear: Numbers, padded: Numbers, strided: Numbers, grouped: Numbers) -> Numbers:
    attributes = layout.padded * padded + (layout.strided + layout.apart * padded) * strided + layout.grouped * grouped
    return np.where(linear, layout.linear, layout.convolution + attributes)


def _factor_saving(layout: FileLayout, linear: Numbers, grouped: Numbers) -> Numbers:
    return np.where(linear, layout.linear_factor, layout.factor + layout.grouped_factor * grouped)


def _node_bytes_of(layout: FileLayout, layer: nn.Module) -> Numbers:
    if not isinstance(layer, CONVOLUTION_KINDS):
        return layout.linear
    padded = layer.padding == "same" or any(layer.padding)
    return _node_bytes(layout, 0, padded, max(layer.stride) > 1, layer.groups > 1)


def _low_precision_bytes(layout: FileLayout, module: LowPrecision) -> float:
    """Return the bytes of one layer with quantized weight or input."""
    assert isinstance(module, nn.Module)
    (layer,) = module.children()
    counts = {name: parameter.numel() for name, parameter in module.named_parameters()}
    weights = counts.pop("codes", 0)
    outputs, weight_bits, activation_bits, levels = _summary(module)
    return float(
        _layer_bytes(
            layout,
            _node_bytes_of(layout, layer),
            floats=sum(counts.values()),
            weights=weights,
            outputs=outputs,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            levels=levels,
        )
    )
