"""Removal of the operators that kept the converter of LiteRT from fusing others.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from objectives.runtimes.litert.writing import NO_INPUT
from objectives.runtimes.passes.integers import ALMOST_ONE, NO_LOWER_BOUND


def remove_barriers(model: schema.ModelT) -> None:
    """Remove the operators that kept the converter from fusing others, and the tensors that nothing reads."""
    (graph,) = model.subgraphs
    neutral = {schema.BuiltinOperator.MAXIMUM: NO_LOWER_BOUND, schema.BuiltinOperator.MUL: ALMOST_ONE}
    barriers = {
        index: {float(np.float32(neutral[code.builtinCode]))}
        for index, code in enumerate(model.operatorCodes)
        if code.builtinCode in neutral
    }
    replaced: dict[int, int] = {}
    for node in graph.operators:
        if node.opcodeIndex in barriers and _distinct(model, node.inputs[1]) == barriers[node.opcodeIndex]:
            replaced[node.outputs[0]] = node.inputs[0]
    for node in graph.operators:
        node.inputs = [replaced.get(index, index) for index in node.inputs]
    graph.operators = [node for node in graph.operators if node.outputs[0] not in replaced]
    _round_codes_again(model)
    codes = sorted({node.opcodeIndex for node in graph.operators})
    model.operatorCodes = [model.operatorCodes[index] for index in codes]
    for node in graph.operators:
        node.opcodeIndex = codes.index(node.opcodeIndex)
    read = {index for node in graph.operators for index in (*node.inputs, *node.outputs)}
    used = sorted({*read, *graph.inputs, *graph.outputs} - {NO_INPUT})
    place = {index: position for position, index in enumerate(used)} | {NO_INPUT: NO_INPUT}
    graph.tensors = [graph.tensors[index] for index in used]
    for node in graph.operators:
        node.inputs, node.outputs = ([place[index] for index in indices] for indices in (node.inputs, node.outputs))
    graph.inputs, graph.outputs = ([place[index] for index in indices] for indices in (graph.inputs, graph.outputs))
    for signature in model.signatureDefs or ():
        for named in (*signature.inputs, *signature.outputs):
            named.tensorIndex = place[named.tensorIndex]


def _distinct(model: schema.ModelT, index: int) -> set[float]:
    """Return the distinct values of a floating-point constant; none for a tensor that is computed."""
    (graph,) = model.subgraphs
    data = model.buffers[graph.tensors[index].buffer].data
    floating = data is not None and graph.tensors[index].type == schema.TensorType.FLOAT32
    return set(np.frombuffer(bytes(data), np.float32).tolist()) if floating else set()


def _round_codes_again(model: schema.ModelT) -> None:
    """Let quantizers read the codes that were unpacked for them, and drop what nothing reads then; in place."""
    (graph,) = model.subgraphs
    codes = [code.builtinCode for code in model.operatorCodes]
    unpacked = {
        node.outputs[0]: node.inputs[0]
        for node in graph.operators
        if codes[node.opcodeIndex] == schema.BuiltinOperator.DEQUANTIZE
        and graph.tensors[node.inputs[0]].type == schema.TensorType.INT8
    }
    for node in graph.operators:
        if codes[node.opcodeIndex] == schema.BuiltinOperator.QUANTIZE:
            node.inputs = [unpacked.get(index, index) for index in node.inputs]
    read = {index for node in graph.operators for index in node.inputs} | set(graph.outputs)
    graph.operators = [node for node in graph.operators if node.outputs[0] not in unpacked or node.outputs[0] in read]
