"""Transpositions of many dimensions in steps of fewer, for interpreters whose kernel takes no more.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from objectives.runtimes.litert.writing import INT32, Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

_TRANSPOSE, _RESHAPE = schema.BuiltinOperator.TRANSPOSE, schema.BuiltinOperator.RESHAPE


def split_transpositions(model: schema.ModelT, most: int) -> None:
    """Replace every transposition of more than `most` dimensions by reshapes and smaller transpositions, in place."""
    graph = model.subgraphs[0]
    writer, nodes, graph.operators = Writer(model, graph), graph.operators, []
    for node in nodes:
        shape = graph.tensors[node.outputs[0]].shape
        if model.operatorCodes[node.opcodeIndex].builtinCode != _TRANSPOSE or len(shape) <= most:
            graph.operators.append(node)
            continue
        order = np.frombuffer(bytes(model.buffers[graph.tensors[node.inputs[1]].buffer].data), np.int32)
        sizes = [int(shape[list(order).index(axis)]) for axis in range(len(order))]
        index = node.inputs[0]
        for blocks, moved in steps(sizes, order.tolist(), most):
            index = _reshape(writer, index, blocks)
            index = _operator(writer, "TRANSPOSE", index, moved, [blocks[axis] for axis in moved])
        _reshape(writer, index, shape)
        graph.operators[-1].outputs = node.outputs
    _join_reshapes(model)


def steps(sizes: Sequence[int], order: Sequence[int], most: int) -> list[tuple[list[int], list[int]]]:
    """Return the shapes and the orders of dimensions of transpositions that one after another do what one does.

    Dimensions that stay side by side are moved as one. Where more than `most` are left, two blocks of neighbours change
    places, those after which the fewest are left: at least one less, since two that belong together can always meet.

    Parameters
    ----------
    sizes, order
        The shape of the input, and its dimensions in the order of the output.
    most
        The most dimensions of each transposition, at least 4.
    """
    found: list[tuple[list[int], list[int]]] = []
    sizes, order = _merged(sizes, order)
    while len(order) > most:
        cuts = itertools.combinations(range(len(order) + 1), 3)
        best = min(cuts, key=lambda cut: len(_merged(*_exchanged(sizes, order, cut))[1]))
        edges = (0, *best, len(order))
        blocks = [math.prod(sizes[start:end]) for start, end in itertools.pairwise(edges)]
        found.append((blocks, [0, 2, 1, 3]))
        sizes, order = _merged(*_exchanged(sizes, order, best))
    return [*found, (list(sizes), list(order))]


def _exchanged(sizes: Sequence[int], order: Sequence[int], cut: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return sizes and order of what is left to do after the dimensions between three cuts have changed places."""
    first, middle, last = cut
    places = [*range(first), *range(middle, last), *range(first, middle), *range(last, len(order))]
    return [sizes[axis] for axis in places], [places.index(axis) for axis in order]


def _merged(sizes: Sequence[int], order: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return sizes and order with dimensions that stay side by side as one, and without those of one element."""
    kept = [axis for axis in range(len(sizes)) if sizes[axis] > 1] or [0]
    runs: list[list[int]] = []
    for axis in (kept.index(axis) for axis in order if axis in kept):
        if runs and axis == runs[-1][-1] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    blocks = sorted(runs)
    return [math.prod(sizes[kept[axis]] for axis in run) for run in blocks], [blocks.index(run) for run in runs]


def _reshape(writer: Writer, source: int, shape: Sequence[int]) -> int:
    """Write a reshape; return the index of its output."""
    options = schema.ReshapeOptionsT()
    options.newShape = list(shape)
    return _operator(writer, "RESHAPE", source, shape, shape, options)


def _operator(
    writer: Writer,
    name: str,
    source: int,
    constant: Sequence[int],
    shape: Sequence[int],
    options: Any = None,  # noqa: ANN401 - of any operator
) -> int:
    """Write an operator with a constant as second input and an output of a shape; return the index of the output."""
    numbers, output = writer.constant(constant, INT32), writer.like(writer.graph.tensors[source])
    writer.graph.tensors[output].shape = list(shape)
    writer.run(name, [source, numbers], [output], options)
    return output


def _join_reshapes(model: schema.ModelT) -> None:
    """Let reshapes of reshapes read what these read, and remove those that nothing reads then, in place."""
    graph = model.subgraphs[0]
    reshapes = [node for node in graph.operators if model.operatorCodes[node.opcodeIndex].builtinCode == _RESHAPE]
    made = {node.outputs[0]: node for node in reshapes}
    for node in reshapes:  # in the order of execution
        if node.inputs[0] in made:
            node.inputs = [made[node.inputs[0]].inputs[0], *node.inputs[1:]]
    read = {index for node in graph.operators for index in node.inputs} | set(graph.outputs)
    graph.operators = [node for node in graph.operators if node not in reshapes or node.outputs[0] in read]
