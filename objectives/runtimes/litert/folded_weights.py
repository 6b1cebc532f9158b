"""Integer weights that the converter has folded to floats, and how a file gets them back.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_PRODUCT_ERROR = 2.0**-22  # relative error of a product of two float32
_DEQUANTIZE_VERSION = 6  # first version of the operator that reads 4 bits
# orders of the dimensions of a weight in a file, by their number: of convolutions, of depthwise convolutions
_DIMENSION_ORDERS = {4: ((0, 2, 3, 1), (1, 2, 3, 0))}


class Weight(NamedTuple):
    """An integer weight: its codes, and the axis of its output channels, which have a scale each."""

    codes: np.ndarray
    axis: int


def restore_integer_weights(model: schema.ModelT, weights: list[Weight]) -> None:
    """Replace each weight that the converter has folded to floats by integers and a DEQUANTIZE, in place.

    The converter also folds factors of a layer's output into the weight, such as the scale of attention scores. The
    scales then differ from those of the network.
    """
    graph = model.subgraphs[0]
    known: dict[tuple[int, ...], list[tuple[np.ndarray, int]]] = {}
    for weight in weights:
        for axes in (range(weight.codes.ndim), *_DIMENSION_ORDERS.get(weight.codes.ndim, ())):
            codes = np.ascontiguousarray(weight.codes.transpose(axes))
            known.setdefault(codes.shape, []).append((codes, axes.index(weight.axis)))
    for index, tensor in enumerate(list(graph.tensors)):
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None:
            continue
        values = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
        match = _match(values, known.get(values.shape, []))
        if match is None:
            continue
        codes, scale, axis = match
        integers = copy.deepcopy(tensor)
        integers.type, integers.buffer = schema.TensorType.INT8, len(model.buffers)
        integers.quantization = schema.QuantizationParametersT()
        integers.quantization.scale = scale.tolist()
        integers.quantization.zeroPoint = [0] * len(scale)
        integers.quantization.quantizedDimension = axis
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(codes.tobytes(), np.uint8)
        model.buffers.append(buffer)
        graph.tensors.append(integers)
        model.buffers[tensor.buffer].data = None
        tensor.buffer = 0  # the empty buffer
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = _dequantize_index(model), [len(graph.tensors) - 1], [index]
        graph.operators.insert(0, node)


def _match(values: np.ndarray, known: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Return the codes that equal the values up to a scale for each channel, with the scales and their axis."""
    for codes, axis in known:
        scales = _scales(values, codes, axis)
        if scales is not None:
            return codes, scales, axis
    return None


def _scales(values: np.ndarray, codes: np.ndarray, axis: int) -> np.ndarray | None:
    """Return the scale of each channel by least squares; None if the codes do not reproduce the values."""
    floats, integers = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64) for x in (values, codes))
    squares = (integers**2).sum(1)
    scales = np.where(squares > 0, (floats * integers).sum(1) / np.maximum(squares, 1), 1.0)
    exact = np.abs(floats - scales[:, None] * integers).max() <= _PRODUCT_ERROR * np.abs(floats).max()
    return scales.astype(np.float32) if exact and (scales > 0).all() else None


def _dequantize_index(model: schema.ModelT) -> int:
    """Return the index of DEQUANTIZE in the operator codes of the file; add it if it is missing."""
    wanted = schema.BuiltinOperator.DEQUANTIZE
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == wanted:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = wanted
    code.version = _DEQUANTIZE_VERSION
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
