"""How many bytes the exported file will have, told from the layers before there is a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from objectives.layers import LowPrecision

if TYPE_CHECKING:
    from objectives.layers import Parts
    from objectives.objective import Direction

# What ONNX needs for its nodes and names, in bytes, read off exported files of residual and plain networks.
GRAPH = 135  # with its last pooling
CONVOLUTION, LINEAR = 64, 60
PADDED, STRIDED, GROUPED = 20, 14, 14  # attributes of a convolution
UNIFORM, CODEBOOK, INPUTS = 65, 99, 83  # what dequantizing the weight and quantizing the input add
CLIP = 26  # inputs below 8 bits
ACTIVATION = 13  # a ReLU or its like, taken as one a layer
FLOAT_BITS, BYTE = 32, 8
# by the width in bits
_WEIGHT_BYTES = np.array([next(b for b in (2, 4, 8, 32) if bits <= b) / BYTE for bits in range(FLOAT_BITS + 1)])
_INPUT_BYTES = np.array([INPUTS * (bits < FLOAT_BITS) + CLIP * (bits < BYTE) for bits in range(FLOAT_BITS + 1)])
_CODED = np.arange(FLOAT_BITS + 1) < FLOAT_BITS


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
                (layer,) = module.children()
                total += _node(layer) + _low_precision(module)
            elif id(module) not in inside:
                total += _node(module) if _is_layer(module) else 0
                total += 4 * sum(parameter.numel() for parameter in module.parameters(recurse=False))
        return float(total)

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the same prediction from the shapes."""
        node = CONVOLUTION + PADDED * parts.padded + STRIDED * parts.strided + GROUPED * parts.grouped
        node = np.where(parts.linear, LINEAR, node)
        width = parts.weight_bits
        entries: np.ndarray | int = UNIFORM
        if parts.levels.any():
            width = np.where(parts.levels, np.ceil(np.log2(np.maximum(2, parts.levels))).astype(int), width)
            entries = np.where(parts.levels, CODEBOOK + 4 * parts.levels, UNIFORM)
        layer = ACTIVATION + _INPUT_BYTES[parts.activation_bits] + entries * _CODED[width]
        each = layer + node + np.ceil(parts.weights * _WEIGHT_BYTES[width])
        each += 4 * (parts.biases + parts.outputs * _CODED[width])  # biases and scales
        total: np.ndarray = (each * (parts.outputs > 0)).sum((0, 2)) + 4 * parts.parameters
        return total


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)


def _node(layer: nn.Module) -> int:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return LINEAR + ACTIVATION
    padded = layer.padding == "same" or any(layer.padding)
    return CONVOLUTION + ACTIVATION + PADDED * padded + STRIDED * (max(layer.stride) > 1) + GROUPED * (layer.groups > 1)


def _low_precision(module: LowPrecision) -> int:
    """Return the bytes of the weight, the bias and the input's rounding of one layer."""
    assert isinstance(module, nn.Module)
    parameters = dict(module.named_parameters())
    total = INPUTS if module.activation_bits < FLOAT_BITS else 0
    total += CLIP if module.activation_bits < BYTE else 0
    codes = parameters.pop("codes", None)
    total += 4 * sum(parameter.numel() for parameter in parameters.values())
    if codes is None:
        return total
    levels: Tensor = module.get_buffer("levels")
    entries = levels.numel()
    width = module.weight_bits if not entries else math.ceil(math.log2(max(2, entries)))
    packed = next(size for size in (2, 4, BYTE) if width <= size)
    total += math.ceil(codes.numel() * packed / BYTE) + 4 * len(codes)
    return total + (CODEBOOK + 4 * entries if entries else UNIFORM)
