"""Loops in a file: WHILE, whose body is the step of a recurrent layer.

The step is stored once, however many steps there are. In a step of integers linear layers compute with 8 bits, as
elsewhere, and all between them, the state too, with 16: rounding to 8 bits adds up over the steps, and a state of 8
bits stands still where it changes by less than a half. A board has little of either: one vector for each tensor.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from objectives.runtimes.litert.loops import CLONE, CURVES, LINEAR, RELU, SPLIT, SUMS, Loop
from objectives.runtimes.litert.writing import BOOL, FLOAT32, INT8, INT16, INT32, NO_INPUT, Writer
from objectives.runtimes.passes.constants import constant
from objectives.runtimes.passes.grid import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

CURVE_SCALE = 2.0**-15  # of the outputs of LOGISTIC and TANH, which their kernels fix
MOST_CODE = 2**15 - 1  # of 16 bits
HEADROOM = 2  # times the largest number that was measured fits into 16 bits: the bit is cheaper than clipping
LEAST_RATIO = 2.0**-12  # of the scale of a sum to that of its terms; kernels need 2**-14


def insert_loops(model: schema.ModelT, loops: list[Loop]) -> None:
    """Put loops between the last outputs and inputs of a file, which are theirs, in place."""
    (graph,) = model.subgraphs
    main, given = Writer(model, graph), sum(len(loop.read) for loop in loops)
    sequences, results = list(graph.outputs)[-len(loops) :], list(graph.inputs)[len(graph.inputs) - given :]
    graph.outputs, graph.inputs = list(graph.outputs)[: -len(loops)], list(graph.inputs)[: len(graph.inputs) - given]
    for signature in model.signatureDefs or ():
        signature.inputs = [one for one in signature.inputs if one.tensorIndex in graph.inputs]
        signature.outputs = [one for one in signature.outputs if one.tensorIndex in graph.outputs]
    for loop, sequence in zip(loops, sequences, strict=True):
        own, results = results[: len(loop.read)], results[len(loop.read) :]
        _insert(main, loop, sequence, dict(zip(loop.read, own, strict=True)))
    _sort(graph)


def _insert(main: Writer, loop: Loop, sequence: int, results: dict[int, int]) -> None:
    """Put one loop into the file."""
    source, step = main.graph.tensors[sequence], _Step(main.model, loop)
    count, states = int(source.shape[0]), len(loop.start)
    outputs = results.get(states)
    body = step.body
    step.write(source, None if outputs is None else main.graph.tensors[outputs])
    carried = [body.graph.tensors[index] for index in body.graph.inputs]
    condition = Writer(main.model)
    condition.graph.inputs = [condition.like(one) for one in carried]
    condition.graph.outputs = [condition.tensor([1], BOOL)]
    end, name = (0, "GREATER_EQUAL") if loop.backwards else (count, "LESS")
    condition.run(name, [condition.graph.inputs[0], condition.constant([end], INT32)], condition.graph.outputs)
    inputs = [main.constant([count - 1 if loop.backwards else 0], INT32), sequence]
    inputs += [_constant(main, value.numpy(), one) for value, one in zip(loop.start, carried[2:], strict=False)]
    found = [main.like(one) for one in carried]
    for place, target in results.items():
        if place == states or main.graph.tensors[target].type == carried[2 + place].type:
            found[2 + place] = target
    if outputs is not None:
        kind = main.graph.tensors[outputs]
        inputs.append(main.like(kind))
        zero = main.constant(0, kind.type)
        main.graph.tensors[zero].quantization = kind.quantization
        main.run("FILL", [main.constant(kind.shape, INT32), zero], inputs[-1:])
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = condition.place, body.place
    main.run("WHILE", inputs, found, options)
    for place, target in results.items():
        if target not in found:
            main.run("QUANTIZE", [found[2 + place]], [target])


def _constant(writer: Writer, values: np.ndarray, like: schema.TensorT) -> int:
    """Add a constant of the type, shape and grid of a tensor."""
    values = values.reshape(like.shape)
    if like.type == FLOAT32:
        return writer.constant(values, FLOAT32)
    (scale,) = like.quantization.scale
    return writer.constant((values / scale).round().clip(-MOST_CODE, MOST_CODE), like.type, scale)


class _Step:
    """Writes the body of a loop."""

    def __init__(self, model: schema.ModelT, loop: Loop) -> None:
        self.body = Writer(model)
        self._loop, self._graph = loop, loop.step.graph
        self._wide = INT16 if loop.integer else FLOAT32
        self._found: dict[Any, Any] = {}  # the index of the tensor of each node, or of several
        self._widened: dict[int, int] = {}
        self._given = [node for node in self._graph.nodes if node.op == "placeholder"]
        results: Any = self._graph.output_node().args[0]
        self._results: list[fx.Node] = list(results)
        self._states = dict(zip(map(_origin, self._results[:-1]), self._given[:-1], strict=True))

    def write(self, source: schema.TensorT, outputs: schema.TensorT | None) -> None:
        """Write the step.

        Parameters
        ----------
        source
            The sequence.
        outputs
            The outputs of all steps, if the network reads them.
        """
        count, sequence = self.body.tensor([1], INT32), self.body.like(source)
        *given, element = self._given
        states = [self.body.tensor(self._shape(node), self._wide, self._scale(node)) for node in given]
        self.body.graph.inputs = [count, sequence, *states]
        self._found |= dict(zip(given, states, strict=True))
        self._found[element] = self._gathered(sequence, source, count)
        for node in self._graph.nodes:
            if node.op == "call_function":
                self._found[node] = self._written(node)
        next_count = self.body.tensor([1], INT32)
        step = self.body.constant([-1 if self._loop.backwards else 1], INT32)
        self.body.run("ADD", [count, step], [next_count], schema.AddOptionsT())
        *last, output = self._results
        self.body.graph.outputs = [next_count, sequence, *(self._widened_to(self._found[node], node) for node in last)]
        if outputs is not None:
            self._keep(self._found[output], outputs, count)

    def _gathered(self, sequence: int, source: schema.TensorT, count: int) -> int:
        """Return the element of the sequence that this step reads."""
        one = self._element_of(source)
        self.body.run("GATHER", [sequence, count], [one], schema.GatherOptionsT())
        return one

    def _keep(self, output: int, outputs: schema.TensorT, count: int) -> None:
        """Write the output of this step to its place among the outputs of all steps."""
        body, others = self.body, len(outputs.shape) - 1
        before, after, start = body.like(outputs), body.like(outputs), body.tensor([1 + others], INT32)
        body.graph.inputs.append(before)
        body.graph.outputs.append(after)
        if body.graph.tensors[output].type != outputs.type or outputs.type != FLOAT32:
            wide, output = output, self._element_of(outputs)
            body.run("QUANTIZE", [wide], [output])
        indices = [count, body.constant([0] * others, INT32)]
        body.run("CONCATENATION", indices, [start], schema.ConcatenationOptionsT())
        body.run("DYNAMIC_UPDATE_SLICE", [before, output, start], [after], schema.DynamicUpdateSliceOptionsT())

    def _element_of(self, sequence: schema.TensorT) -> int:
        """Add a tensor for one element of a sequence."""
        one = self.body.like(sequence)
        self.body.graph.tensors[one].shape = np.array([1, *sequence.shape[1:]], np.int32)
        return one

    def _written(self, node: fx.Node) -> Any:  # noqa: ANN401 - one index or several
        """Write one operator, and return its tensor, or its tensors."""
        arguments: Any = node.args
        writers = {SPLIT: self._split, LINEAR: self._linear, QUANTIZE: self._quantize, **dict.fromkeys(SUMS, self._sum)}
        if node.target in writers:
            return writers[node.target](node)
        if node.target in CURVES:
            return self._run(CURVES[node.target], node, [self._wide_of(arguments[0])])
        if node.target == operator.getitem:
            return self._found[arguments[0]][arguments[1]]
        assert node.target in {DEQUANTIZE, DEQUANTIZE_WEIGHT, CLONE, RELU}
        return self._found.get(arguments[0])  # of codes: read as such, or widened where they are read

    def _sum(self, node: fx.Node) -> int:
        target: Any = node.target
        name, terms = SUMS[target], [self._wide_of(one) for one in node.all_input_nodes]
        terms = terms if len(terms) > 1 else 2 * terms  # of a tensor and itself
        options = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}[name]()
        if any(user.target == RELU for user in node.users):
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU
        if name != "MUL":
            options.potScaleInt16 = False  # their scales are no powers of two
        return self._run(name, node, terms, options)

    def _split(self, node: fx.Node) -> list[int]:
        arguments: Any = node.args
        source, count, dimension = arguments
        whole = self._wide_of(source)
        tensor = self.body.graph.tensors[whole]
        shape, axis = list(tensor.shape), dimension if dimension < 0 else dimension + 1
        shape[axis] //= count
        scale = None if tensor.quantization is None else tensor.quantization.scale
        outputs = [self.body.tensor(shape, tensor.type, scale) for _ in range(count)]
        options = schema.SplitOptionsT()
        options.numSplits = count
        self.body.run("SPLIT", [self.body.constant(axis % len(shape), INT32), whole], outputs, options)
        return outputs

    def _linear(self, node: fx.Node) -> int:
        arguments: Any = node.args
        source, weight, *bias = arguments
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        value = None if not bias or bias[0] is None else constant(self._loop.step, bias[0]).numpy()
        if not self._loop.integer:
            floats = self.body.constant(constant(self._loop.step, weight).numpy(), FLOAT32)
            inputs = [self._wide_of(source), floats, NO_INPUT if value is None else self.body.constant(value, FLOAT32)]
            return self._run("FULLY_CONNECTED", node, inputs, options)
        codes, scales = (constant(self._loop.step, one).numpy() for one in weight.args[:2])
        (scale,) = self.body.graph.tensors[self._found[source]].quantization.scale
        products = scales.astype(np.float64) * float(scale)
        inputs = [self._found[source], self.body.constant(codes, INT8, scales)]
        inputs.append(NO_INPUT if value is None else self.body.constant((value / products).round(), INT32, products))
        (quantizer,) = node.users
        grid = Grid.of(quantizer)
        output = self.body.tensor(self._shape(node), INT8, grid.scale, grid.zero)
        self.body.run("FULLY_CONNECTED", inputs, [output], options)
        return output

    def _quantize(self, node: fx.Node) -> int:
        """Write a quantizer; that of an integer layer is the layer itself."""
        (source,), grid = node.all_input_nodes, Grid.of(node)
        if self._loop.integer and source.target == LINEAR:
            return int(self._found[source])
        output = self.body.tensor(self._shape(node), INT8, grid.scale, grid.zero)
        self.body.run("QUANTIZE", [self._found[source]], [output])
        return output

    def _run(self, name: str, node: fx.Node, inputs: list[int], options: Any = None) -> int:  # noqa: ANN401 - of any operator
        output = self.body.tensor(self._shape(node), self._wide, self._scale(node, inputs))
        self.body.run(name, inputs, [output], options)
        return output

    def _wide_of(self, node: fx.Node) -> int:
        """Return the tensor of a node in 16 bits, or in floating point in a step of floats."""
        return self._widened_to(self._found[node], node)

    def _widened_to(self, index: int, node: fx.Node) -> int:
        tensor = self.body.graph.tensors[index]
        if tensor.type == self._wide:
            return index
        if index not in self._widened:
            scale = self._measured(node) if tensor.type == FLOAT32 else tensor.quantization.scale  # of codes: exact
            wide = self.body.tensor(tensor.shape, self._wide, None if self._wide == FLOAT32 else scale)
            self.body.run("DEQUANTIZE" if self._wide == FLOAT32 else "QUANTIZE", [index], [wide])
            self._widened[index] = wide
        return self._widened[index]

    def _scale(self, node: fx.Node, inputs: Sequence[int] = ()) -> float | None:
        """Return the scale of a tensor of 16 bits; None for one of floats. A state has that of the next one."""
        if self._wide == FLOAT32:
            return None
        node = _origin(self._results[self._given.index(node)] if node in self._given else node)
        if node.target in CURVES:
            return CURVE_SCALE
        if node.target == DEQUANTIZE:
            return Grid.of(node).scale
        if node in self._states:
            return max(self._measured(node), self._measured(self._states[node]))
        least = [LEAST_RATIO * float(self.body.graph.tensors[index].quantization.scale[0]) for index in inputs]
        return max([self._measured(node), *least])

    def _measured(self, node: fx.Node) -> float:
        low, high = self._loop.ranges[node.name]
        return HEADROOM * max(-low, high) / MOST_CODE or 1.0

    def _shape(self, node: fx.Node) -> list[int]:
        """Return the shape of a tensor in the file, where one element still has the dimension of the steps."""
        return [1, *node.meta["val"].shape]


def _origin(node: fx.Node) -> fx.Node:
    """Return the node that computes what a node returns, where that is a copy, or a clamp that a sum fuses."""
    while node.target in {CLONE, RELU}:
        node = node.all_input_nodes[0]
    return node


def _sort(graph: schema.SubGraphT) -> None:
    """Order the operators of a graph so that each follows what it reads, and as late as it may; in place."""
    maker = {index: node for node in graph.operators for index in node.outputs}
    ordered: list[schema.OperatorT] = []
    done: set[int] = set()
    waiting = [maker[index] for index in reversed(list(graph.outputs)) if index in maker]
    while waiting:
        node = waiting[-1]
        missing = [maker[index] for index in node.inputs if index in maker and id(maker[index]) not in done]
        if missing:
            waiting += reversed(missing)
            continue
        waiting.pop()
        if id(node) not in done:
            done.add(id(node))
            ordered.append(node)
    graph.operators = ordered
