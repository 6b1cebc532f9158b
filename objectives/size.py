"""The size of the exported file, predicted from the layers before there is a file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from objectives.finished_layers import CONVOLUTION_KINDS, is_layer, wrapped_in
from objectives.layers import FLOAT_BITS, Factored, LeftOut, LowPrecision, resizes_in_file
from objectives.runtimes.onnx.runtime import OnnxRuntime

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from objectives.layers import Parts
    from objectives.objective import Direction
    from objectives.runtimes.file_layout import FileLayout
    from objectives.runtimes.runtime import Runtime

BYTE_BITS = 8  # bits in a byte
RIGHT = 0.03  # relative error of sizes that need no correction (chosen: little more than where layouts are right)
SIZE_TOLERANCE = 0.002  # relative error that no part of a layout has to explain, beside the bytes of a layer (chosen)
OUTSIDE_SHARE = 0.1  # share of the numbers outside of layers that files are likely to leave out (chosen)
FLOAT_LAYER = 1, FLOAT_BITS, FLOAT_BITS, 0  # output channels (any), bits of weight and input, levels: see `_summary`
Numbers = Any  # a number, or an array of one number a layer: the formulas hold for both


@dataclass(frozen=True, slots=True)
class SizeBytes:
    """Bytes of the file of a network, predicted from its layers; the front also shows the size of the real file.

    Parameters
    ----------
    runtime
        The runtime that writes the file; codes count at the width in which it stores them.
    read_off
        The layout as files of one network have it, set by `calibrated`; by default that of the runtime.
    """

    runtime: Runtime = field(default_factory=OnnxRuntime)
    read_off: FileLayout | None = field(default=None, repr=False, metadata={"found": True})
    name: ClassVar[str] = "size_bytes"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    @property
    def layout(self) -> FileLayout:
        """The layout from which sizes are predicted."""
        return self.read_off or self.runtime.layout

    def __call__(self, model: nn.Module) -> float:
        """Return the prediction in bytes."""
        return _file_bytes(self.layout, model)

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the same prediction from the shapes of the layers."""
        layout = self.layout
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
        total: np.ndarray = (each * exists).sum((0, 2)) + layout.outside * parts.parameters
        saving = _factor_saving(layout, parts.linear, parts.grouped) * exists
        total -= saving[1:].sum((0, 2))
        total += layout.sum * parts.sums + layout.resize * parts.resized
        if layout.tensor:
            total += layout.tensor * parts.held
        if layout.zeros or layout.mixed or layout.ends:
            total += _network_bytes(layout, parts.outputs, parts.weight_bits, parts.activation_bits, parts.levels)
        return total

    def calibrated(self, *files: tuple[nn.Module, float]) -> SizeBytes:
        """Return the prediction with a layout that explains files of one network, for networks compressed from it.

        What a layer adds to a file depends on what stands around it: a rounded layer between operators of floats needs
        conversions, and a factor may need a transposition. The parts of the layout for this are changed by as little
        as explains the bytes that it misses, each relative to its own size: ridge regression (Hoerl and Kennard 1970,
        Technometrics 12(1), §2). The first file is then predicted exactly. It alone is explained, if the others are
        predicted well enough by that.

        If the first prediction is too large by more than all that is outside of layers, the file stores shared numbers
        once that the network holds twice, and nothing is corrected.

        Parameters
        ----------
        files
            Finished networks with the bytes of their files: the network itself, then some that are compressed from it,
            at best one with rounding alone, and some with all axes at once.
        """
        layout, models = self.runtime.layout, [model for model, _ in files]
        sizes, predicted = np.array([size for _, size in files]), _each_file_bytes(layout, models)
        counts = {part: _each_file_bytes(_changed(layout, {part: 1.0}), models) - predicted for part in _scales(layout)}
        if predicted[0] - sizes[0] > layout.graph + layout.outside * counts["outside"][0]:
            return replace(self, read_off=None)
        for used in (1, len(files)):
            had = {part: count[:used] for part, count in counts.items()}
            found = _changed(layout, _explaining(layout, had, (sizes - predicted)[:used], sizes[:used]))
            found = _changed(found, {"graph": float(sizes[0]) - _file_bytes(found, models[0])})
            if (np.abs(_each_file_bytes(found, models) / sizes - 1) < RIGHT).all():
                break
        return replace(self, read_off=found)


def _explaining(
    layout: FileLayout, counts: Mapping[str, np.ndarray], missed: np.ndarray, sizes: np.ndarray
) -> dict[str, float]:
    """Return the bytes to add to each part of the layout, given how often each of F files has it, shape (F,)."""
    scales = _scales(layout)
    tolerated = np.hypot(scales["factor"], SIZE_TOLERANCE * sizes)
    tolerated[0] = 1.0  # what is left of the largest file would be much of the small ones
    rows = {part: scale * counts[part] / tolerated for part, scale in scales.items()}
    shares = _ridge(rows, missed / tolerated)
    if shares["outside"] > 0:  # files may leave out numbers, but hold none twice
        shares = _ridge(rows | {"outside": np.zeros(len(sizes))}, missed / tolerated)
    # whole bytes, so that sizes are; numbers outside of layers are too many for that
    return {part: round(shares[part] * scale, 2 * (part == "outside")) for part, scale in scales.items()}


def _ridge(rows: Mapping[str, np.ndarray], targets: np.ndarray) -> dict[str, float]:
    """Return the coefficients, small ones, of a sum of these rows that is close to the targets."""
    design, count = np.stack(list(rows.values()), 1), len(rows)
    found, *_ = np.linalg.lstsq(np.concatenate([design, np.eye(count)]), np.concatenate([targets, np.zeros(count)]))
    return dict(zip(rows, found.tolist(), strict=True))


def _scales(layout: FileLayout) -> dict[str, float]:
    """Return the parts of a layout that depend on the network, each with the bytes by which it is likely to be wrong.

    Most may be wrong by as much as they are; what a runtime does not have stays 0.
    """
    layer = max(layout.convolution, layout.linear)
    of_layers = dict.fromkeys(("tensor", "factor", "grouped_factor", "linear_factor"), layer)
    own = {part: getattr(layout, part) or 0.0 for part in ("graph", "floating", "integer", "codebook", "mixed", "ends")}
    return {"outside": OUTSIDE_SHARE * layout.outside} | of_layers | {part: size for part, size in own.items() if size}


def _changed(layout: FileLayout, changes: Mapping[str, float]) -> FileLayout:
    """Return the layout with these bytes added to its parts."""
    return replace(layout, **{part: getattr(layout, part) + change for part, change in changes.items()})


def _each_file_bytes(layout: FileLayout, models: Iterable[nn.Module]) -> np.ndarray:
    return np.array([_file_bytes(layout, model) for model in models])


def _file_bytes(layout: FileLayout, model: nn.Module) -> float:
    """Return the bytes of the file of a finished network."""
    total, wrapped = layout.graph + layout.tensor * _tensors_outside_layers(model), wrapped_in(model)
    summaries = []
    for module in model.modules():
        if isinstance(module, LowPrecision):
            total += _low_precision_bytes(layout, module)
            summaries += [_summary(module)]
        elif id(module) not in wrapped:
            numbers = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            total += (
                float(_layer_bytes(layout, _node_bytes_of(layout, module), floats=numbers))
                if is_layer(module)
                else layout.outside * numbers
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
    return float(total)


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
