"""Concatenations of many tensors in parts, for interpreters that take few at once.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import copy

from ai_edge_litert import schema_py_generated as schema


def split_concatenations(model: schema.ModelT, most: int) -> None:
    """Replace every concatenation of more than `most` tensors by several of at most so many, in place."""
    graph = model.subgraphs[0]
    codes = [code.builtinCode for code in model.operatorCodes]
    operators = []
    for node in graph.operators:
        while codes[node.opcodeIndex] == schema.BuiltinOperator.CONCATENATION and len(node.inputs) > most:
            inputs = list(node.inputs)
            joined = [inputs[start : start + most] for start in range(0, len(inputs), most)]
            parts = [_part(graph, node, each) for each in joined]
            operators += [part for part in parts if len(part.inputs) > 1]
            node.inputs = [part.outputs[0] for part in parts]
        operators.append(node)
    graph.operators = operators


def _part(graph: schema.SubGraphT, node: schema.OperatorT, inputs: list[int]) -> schema.OperatorT:
    """Return the concatenation of some of the inputs of another one; of one input its output is the input."""
    part = copy.deepcopy(node)
    part.inputs = inputs
    if len(inputs) == 1:
        part.outputs = inputs
        return part
    tensor = copy.deepcopy(graph.tensors[node.outputs[0]])
    axis = node.builtinOptions.axis
    shape = list(tensor.shape)
    shape[axis] = sum(int(graph.tensors[index].shape[axis]) for index in inputs)
    tensor.shape, tensor.name = shape, b""
    graph.tensors.append(tensor)
    part.outputs = [len(graph.tensors) - 1]
    return part
