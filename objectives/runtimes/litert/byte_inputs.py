"""Inputs in bytes, such as images, for an interpreter that makes floats of codes alone.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import torch
from ai_edge_litert import schema_py_generated as schema

from objectives.runtimes.litert.ends import convert_end, is_rounded, quantization
from objectives.runtimes.litert.writing import place_of_operator
from objectives.runtimes.passes.grid import INT8_MAX, INT8_MIN, Grid

_OPERATORS = schema.BuiltinOperator
_BYTE_MOVERS = {_OPERATORS.TRANSPOSE, _OPERATORS.RESHAPE, _OPERATORS.SLICE, _OPERATORS.STRIDED_SLICE, _OPERATORS.GATHER,
                _OPERATORS.GATHER_ND, _OPERATORS.REVERSE_V2}  # fmt: skip
_BYTES = Grid(1.0, 0, 0, INT8_MAX - INT8_MIN, torch.uint8)  # a code is its number
_SIGNED = Grid(1.0, INT8_MIN)


def make_codes_of_bytes(model: schema.ModelT) -> None:
    """Give inputs in bytes the scale 1, so that DEQUANTIZE makes floats of them instead of CAST, in place.

    Those that are moved before, as by a transposition, are signed integers there, since kernels move these alone. An
    input that anything else reads stays as it is.
    """
    graph = model.subgraphs[0]  # loops read no inputs of the file
    for place, index in enumerate(list(graph.inputs)):
        tensor = graph.tensors[index]
        if tensor.type == schema.TensorType.UINT8 and not is_rounded(tensor):
            moved = _make_codes(model, index)
            if len(moved) > 1:
                convert_end(model, graph.inputs, place, schema.TensorType.UINT8, _BYTES, first=True)


def _make_codes(model: schema.ModelT, index: int) -> list[int]:
    """Make codes of a tensor of bytes and of all that is only moved of it; return these, none if it stays as it is."""
    graph = model.subgraphs[0]
    moved, casts = [index], []
    for one in moved:
        for node in _readers(graph, one):
            if _code(model, node) in _BYTE_MOVERS and node.inputs[0] == one:
                moved.append(node.outputs[0])
            else:
                casts.append((one, node, _to_floats(model, node)))
    if not all(last for *_, last in casts) or not {*moved}.isdisjoint(graph.outputs):
        return []
    for one, first, last in casts:
        if first not in last:
            graph.operators.remove(first)
        for node in last:
            node.inputs, node.opcodeIndex = [one], place_of_operator(model, _OPERATORS.DEQUANTIZE, 2)
            node.builtinOptions, node.builtinOptionsType = None, schema.BuiltinOptions.NONE
    for one in moved:
        graph.tensors[one].type = schema.TensorType.INT8 if len(moved) > 1 else schema.TensorType.UINT8
        graph.tensors[one].quantization = quantization(_SIGNED if len(moved) > 1 else _BYTES)
    return moved


def _to_floats(model: schema.ModelT, node: schema.OperatorT) -> list[schema.OperatorT]:
    """Return the casts to floats that begin with an operator, itself or those of its 32-bit integers, if it is one."""
    graph = model.subgraphs[0]
    if _code(model, node) != _OPERATORS.CAST:
        return []
    output = node.outputs[0]
    if graph.tensors[output].type == schema.TensorType.FLOAT32:
        return [node]
    if graph.tensors[output].type != schema.TensorType.INT32 or output in graph.outputs:
        return []
    found = [_to_floats(model, reader) for reader in _readers(graph, output)]
    return [cast for casts in found for cast in casts] if all(found) else []


def _readers(graph: schema.SubGraphT, index: int) -> list[schema.OperatorT]:
    return [node for node in graph.operators if index in node.inputs]


def _code(model: schema.ModelT, node: schema.OperatorT) -> int:
    return int(model.operatorCodes[node.opcodeIndex].builtinCode)
