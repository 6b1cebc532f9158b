"""The types of the inputs and outputs of a LiteRT file.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from objectives.runtimes.litert.writing import place_of_operator
from objectives.runtimes.passes.grid import INT8_MIN, Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from objectives.runtimes.ends import WithEnds

_TYPES = {torch.float32: schema.TensorType.FLOAT32, torch.int8: schema.TensorType.INT8,
          torch.uint8: schema.TensorType.UINT8}  # fmt: skip
_OPERATORS = schema.BuiltinOperator


def set_types(model: schema.ModelT, ends: WithEnds) -> None:
    """Give the inputs and outputs of a file the types of its ends, in place.

    The converter makes 8-bit signed integers of rounded inputs and outputs. Other types are converted by an operator
    of the file, which costs a pass over the tensor.
    """
    graph = model.subgraphs[0]
    floats = torch.float32 if ends.form.type == "float32" else None
    for places, grids, first in ((graph.inputs, ends.grids[0], True), (graph.outputs, ends.grids[1], False)):
        assert len(places) == len(grids)
        for place, grid in enumerate(grids):
            wanted = floats if grid is None else grid.dtype
            have = graph.tensors[places[place]].type
            if wanted is None or have == _TYPES[wanted] or have not in {*_TYPES.values()}:
                continue
            if have != schema.TensorType.FLOAT32 and not is_rounded(graph.tensors[places[place]]):
                continue  # such as images in bytes, which the network itself takes
            if {_TYPES[wanted], have} == {schema.TensorType.FLOAT32, schema.TensorType.UINT8}:  # by way of signed ones
                assert grid is not None
                signed = grid._replace(zero=grid.zero + INT8_MIN)
                convert_end(model, places, place, schema.TensorType.INT8, signed, first=first)
            convert_end(model, places, place, _TYPES[wanted], grid, first=first)


def is_rounded(tensor: schema.TensorT) -> bool:
    """Return whether the integers of a tensor stand for numbers."""
    return tensor.quantization is not None and tensor.quantization.scale is not None


def grids_of(content: bytes, entry: int) -> tuple[list[Grid | None], list[Grid | None]]:
    """Return the grids of the inputs and outputs of one graph of a file; None for those that are no codes."""
    graph = flatbuffer_utils.convert_bytearray_to_object(bytearray(content)).subgraphs[entry]
    dtypes = {kind: dtype for dtype, kind in _TYPES.items() if dtype != torch.float32}

    def grid(index: int) -> Grid | None:
        tensor = graph.tensors[index]
        if tensor.type not in dtypes or not is_rounded(tensor):
            return None
        limits = torch.iinfo(dtypes[tensor.type])
        scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
        return Grid(scale, zero, int(limits.min), int(limits.max), dtypes[tensor.type])

    inputs, outputs = ([grid(index) for index in places] for places in (graph.inputs, graph.outputs))
    return inputs, outputs


def convert_end(
    model: schema.ModelT, places: Sequence[int], place: int, wanted: int, grid: Grid | None, *, first: bool
) -> None:
    """Put an operator between an end and the tensor that it was."""
    graph = model.subgraphs[0]
    inner, index = places[place], len(graph.tensors)
    tensor = copy.copy(graph.tensors[inner])
    tensor.type, tensor.buffer, tensor.quantization = wanted, 0, None
    if wanted != schema.TensorType.FLOAT32:
        assert grid is not None
        tensor.quantization = quantization(grid)
    graph.tensors.append(tensor)
    source, target = (index, inner) if first else (inner, index)
    to_floats = graph.tensors[target].type == schema.TensorType.FLOAT32
    node = schema.OperatorT()
    node.opcodeIndex = place_of_operator(model, _OPERATORS.DEQUANTIZE if to_floats else _OPERATORS.QUANTIZE, 2)
    node.inputs, node.outputs = [source], [target]
    if first:
        graph.operators.insert(0, node)
    else:
        graph.operators.append(node)
    places[place] = index  # type: ignore[index]  # a list, or an array of NumPy
    for signature in model.signatureDefs or ():
        for named in signature.inputs if first else signature.outputs:
            named.tensorIndex = index if named.tensorIndex == inner else named.tensorIndex


def quantization(grid: Grid) -> schema.QuantizationParametersT:
    """Return a grid as a file holds it."""
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint = np.asarray([grid.scale], np.float32), np.asarray([grid.zero], np.int64)
    return found
