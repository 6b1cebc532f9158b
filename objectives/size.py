"""How many bytes the exported file will have, told from the layers before there is a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from objectives.layers import LowPrecision

if TYPE_CHECKING:
    from objectives.layers import Parts
    from objectives.objective import Direction

# What ONNX needs for its nodes and names, in bytes, read off exported files of residual and plain networks.
GRAPH = 135  # with its last pooling
CONVOLUTION, LINEAR = 77, 73  # with a ReLU or its like, of which there is about one a layer
PADDED, STRIDED, GROUPED = 20, 14, 14  # attributes of a convolution
UNIFORM, CODEBOOK, INPUTS = 65, 99, 83  # what dequantizing the weight and quantizing the input add
CLIP = 26  # inputs below 8 bits
FLOAT_BITS, BYTE = 32, 8
Numbers = Any  # a number, or an array of one a layer
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# by the width in bits
_WEIGHT_BYTES = np.array([next(b for b in (2, 4, 8, 32) if bits <= b) / BYTE for bits in range(FLOAT_BITS + 1)])
_INPUT_BYTES = np.array([float(INPUTS * (bits < FLOAT_BITS) + CLIP * (bits < BYTE)) for bits in range(FLOAT_BITS + 1)])
_CODED = (np.arange(FLOAT_BITS + 1) < FLOAT_BITS).astype(float)
_UNIFORM = UNIFORM * _CODED


@dataclass(frozen=True, slots=True)
class SizeBytes:
    """Bytes of the network's ONNX file as predicted from its layers; the front shows the real file beside it.

    Codes are counted at the width in which they are packed (2, 4 or 8 bits), scales and biases as 32-bit floats.
    """

    name: ClassVar[str] = "size_bytes"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the prediction in bytes."""
        inside = {
            id(child) for module in model.modules() if isinstance(module, LowPrecision) for child in module.children()
        }
        total = GRAPH
        for module in model.modules():
            if isinstance(module, LowPrecision):
                total += _low_precision(module)
            elif id(module) not in inside:
                numbers = sum(parameter.numel() for parameter in module.parameters(recurse=False))
                total += int(_bytes(_node_of(module), floats=numbers)) if _is_layer(module) else 4 * numbers
        return float(total)

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the same prediction from the shapes."""
        each = _bytes(
            _node(parts.linear, parts.padded, parts.strided, parts.grouped),
            floats=parts.biases,
            weights=parts.weights,
            outputs=parts.outputs,
            weight_bits=parts.weight_bits,
            activation_bits=parts.activation_bits,
            levels=parts.levels,
        )
        total: np.ndarray = (each * (parts.outputs > 0).astype(float)).sum((0, 2)) + 4 * parts.parameters
        return total


def _bytes(
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
    width: Numbers = weight_bits
    entries: Numbers = _UNIFORM[width]
    if np.count_nonzero(levels):  # quicker than `any` on few
        width = np.where(levels, np.ceil(np.log2(np.maximum(2, levels))).astype(int), width)
        entries = np.where(levels, CODEBOOK + 4 * levels, entries)
    rounding = _INPUT_BYTES[activation_bits] + entries
    scales = outputs * _CODED[width]
    return node + rounding + np.ceil(weights * _WEIGHT_BYTES[width]) + 4.0 * (floats + scales)


def _node(linear: Numbers, padded: Numbers, strided: Numbers, grouped: Numbers) -> Numbers:
    return np.where(linear, LINEAR, CONVOLUTION + PADDED * padded + STRIDED * strided + GROUPED * grouped)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def _node_of(layer: nn.Module) -> Numbers:
    if not isinstance(layer, CONVOLUTIONS):
        return LINEAR
    padded = layer.padding == "same" or any(layer.padding)
    return _node(0, padded, max(layer.stride) > 1, layer.groups > 1)


def _low_precision(module: LowPrecision) -> int:
    """Return the bytes of one layer whose weight or input is rounded."""
    assert isinstance(module, nn.Module)
    (layer,) = module.children()
    parameters = dict(module.named_parameters())
    codes = parameters.pop("codes", None)
    floats = sum(parameter.numel() for parameter in parameters.values())
    if codes is None:
        return int(_bytes(_node_of(layer), floats=floats, activation_bits=module.activation_bits))
    return int(
        _bytes(
            _node_of(layer),
            floats=floats,
            weights=codes.numel(),
            outputs=module.get_buffer("scale").numel(),
            weight_bits=module.weight_bits,
            activation_bits=module.activation_bits,
            levels=module.get_buffer("levels").numel(),
        )
    )
