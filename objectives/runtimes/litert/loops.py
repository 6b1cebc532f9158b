"""Loops of a network, such as the steps of a recurrent layer, which the converter of LiteRT cannot read.

They are taken out of the graph before it is converted: the graph gives what a loop reads as further outputs, and takes
what the loop gives as further inputs. `objectives.runtimes.litert.steps` puts them into the file.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from objectives.layers import Repeating
from objectives.runtimes.passes.constants import fold, put_constant
from objectives.runtimes.passes.grid import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, Grid
from objectives.runtimes.passes.integers import exported
from objectives.runtimes.passes.ranges import RangeObserver
from objectives.runtimes.passes.tiny_scales import widen_tiny_scales
from objectives.runtimes.passes.zero_branches import ATEN

if TYPE_CHECKING:
    from collections.abc import Sequence

SCAN = torch.ops.higher_order.scan
SPLIT, LINEAR, RELU, CLONE = ATEN.chunk.default, ATEN.linear.default, ATEN.relu.default, ATEN.clone.default
SUMS = {ATEN.add.Tensor: "ADD", ATEN.sub.Tensor: "SUB", ATEN.mul.Tensor: "MUL"}
CURVES = {ATEN.sigmoid.default: "LOGISTIC", ATEN.tanh.default: "TANH"}
_STEP_OPERATORS = {*SUMS, *CURVES, SPLIT, LINEAR, RELU, CLONE, QUANTIZE, DEQUANTIZE, DEQUANTIZE_WEIGHT,
                   operator.getitem}  # fmt: skip
_ZEROS = {ATEN.new_zeros.default, ATEN.zeros.default}
_MOVED = {LINEAR, QUANTIZE, DEQUANTIZE}  # operators that do the same at every step, in any order


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop over the steps of a sequence.

    Attributes
    ----------
    step
        The graph of one step: it takes the states and one element of the sequence, and returns the next states and the
        output. In a step of integers, integers also come from its linear layers.
    start
        The states before the first step.
    backwards
        Whether the last element is read first; outputs keep the order of the elements.
    read
        The results that the graph reads: the places of last states, and the number of states for all outputs.
    ranges
        The lowest and highest number of every tensor of the step.
    integer
        Whether it computes with integers.
    """

    step: fx.GraphModule
    start: tuple[Tensor, ...]
    backwards: bool
    read: tuple[int, ...]
    ranges: dict[str, tuple[float, float]]
    integer: bool


def without_loops(
    model: nn.Module, examples: list[tuple[Tensor, ...]]
) -> tuple[nn.Module, list[tuple[Tensor, ...]], list[Loop]]:
    """Return a network without its loops, its inputs, and the loops; the network as it is if a loop has no file form.

    Parameters
    ----------
    model
        Takes tensors one after another.
    examples
        Calibration inputs, one example after another.

    Returns
    -------
    tuple
        The network gives the sequences that the loops read after its own outputs, and takes the results of the loops
        after its own inputs, in the order of the loops, as many as each has in `read`.
    """
    graph_module = _captured(model, examples[0])
    scans = [] if graph_module is None else [node for node in graph_module.graph.nodes if node.target == SCAN]
    if graph_module is None or not scans or not all(_is_loop(graph_module, node) for node in scans):
        return model, examples, []
    recorder = _Recorder(graph_module)
    with torch.no_grad():
        for one in examples:
            recorder.run(*one)
    every = torch.cat([run[-1].flatten() for runs in recorder.results.values() for run in runs])
    grid = Grid.over(float(every.min()), float(every.max()))  # one for all loops: directions are joined as they are
    loops, inputs = [], [list(one) for one in examples]
    for node in scans:
        loop, results = _taken_out(graph_module, node, recorder, grid)
        loops.append(loop)
        for taken, found in zip(inputs, results, strict=True):
            taken.extend(found)
    graph = graph_module.graph
    graph.set_codegen(fx.graph.CodeGen())  # plain arguments and results
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph), [tuple(one) for one in inputs], loops


def _captured(model: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule | None:
    """Return the graph of a network with its loops, if anything in it repeats a step."""
    repeating = [module for module in model.modules() if isinstance(module, Repeating)]
    if not repeating:
        return None
    try:
        for module in repeating:
            module.loops = module.unfused = True
        graph_module: Any = exported(model, example, None).module(check_guards=False)
    except Exception:  # noqa: BLE001 - the steps are written one by one then, or the error is reported there
        return None
    finally:
        for module in repeating:
            module.loops = module.unfused = False
    graph_module.graph.eliminate_dead_code()  # such as outputs of which only the last state is read
    return graph_module  # type: ignore[no-any-return]


def _is_loop(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a loop reads one sequence, starts with constants, and has a step that a file can hold."""
    arguments: Any = node.args
    name, start, sequences, _ = arguments
    step = graph_module.get_submodule(name.target)
    assert isinstance(step, fx.GraphModule)
    called = [one for one in step.graph.nodes if one.op == "call_function"]
    clamped = [one.all_input_nodes[0] for one in called if one.target == RELU]
    results = len(step.graph.output_node().args[0])  # type: ignore[arg-type]
    return (
        len(sequences) == 1
        and results == len(start) + 1
        and all(one.op == "get_attr" or one.target in _ZEROS for one in start)
        and all(one.target in _STEP_OPERATORS for one in called)
        and all(isinstance(argument, fx.Node) for one in called if one.target in SUMS for argument in one.args)
        and all(one.target in SUMS and len(one.users) == 1 for one in clamped)  # fused into the sum
    )


class _Recorder(fx.Interpreter):
    """An interpreter that runs loops step by step, and keeps their results and the ranges in their steps."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.observers: dict[fx.Node, RangeObserver] = {}
        self.starts: dict[fx.Node, tuple[Tensor, ...]] = {}
        self.constants: dict[fx.Node, tuple[Tensor, ...]] = {}
        self.results: dict[fx.Node, list[list[Tensor]]] = {}

    def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - any value of a graph
        """Run one node; of a loop return the last states and all outputs."""
        if node.target != SCAN:
            return super().run_node(node)
        (step, start, (sequence,), constants), _ = self.fetch_args_kwargs_from_env(node)
        self.starts[node], self.constants[node] = tuple(start), tuple(constants)
        observer = self.observers.setdefault(node, RangeObserver(step))
        state, outputs = list(start), []
        for element in sequence:
            *state, output = observer.run(*state, element, *constants)
            outputs.append(output)
        found = [*state, torch.stack(outputs)]
        self.results.setdefault(node, []).append(found)
        return found


def _taken_out(
    graph_module: fx.GraphModule, node: fx.Node, recorder: _Recorder, grid: Grid
) -> tuple[Loop, list[list[Tensor]]]:
    """Take one loop out of the graph, in place; return it, and for each example the results that the graph reads."""
    graph, arguments = graph_module.graph, node.args
    step = graph_module.get_submodule(arguments[0].target)  # type: ignore[union-attr, arg-type]
    assert isinstance(step, fx.GraphModule)
    start, ranges = recorder.starts[node], recorder.observers[node].ranges
    integer = _finish(step, len(start) + 1, recorder.constants[node], ranges)
    backwards = _turn_around(node, len(start))
    results = recorder.results[node]
    if backwards:
        results = [[*last, outputs.flip(0)] for *last, outputs in results]
    parts: dict[Any, fx.Node] = {user.args[1]: user for user in node.users if user.users}
    *_, last_input = (one for one in graph.nodes if one.op == "placeholder")
    for place in sorted(parts):
        with graph.inserting_after(last_input):
            last_input = value = graph.placeholder(f"loop_{node.name}_{place}")
        if integer:
            own = Grid.over(*_ends([run[place] for run in results])) if place < len(start) else grid
            with graph.inserting_after(value):
                codes = graph.call_function(QUANTIZE, (value, *own))
            with graph.inserting_after(codes):
                value = graph.call_function(DEQUANTIZE, (codes, *own))
        parts[place].replace_all_uses_with(value)
    output, sequence = graph.output_node(), node.args[2][0]  # type: ignore[index]
    output.args = ((*output.args[0], sequence),)  # type: ignore[misc]
    read = tuple(sorted(parts))
    loop = Loop(step, start, backwards, read, ranges, integer)
    return loop, [[run[place] for place in read] for run in results]


def _ends(tensors: Sequence[Tensor]) -> tuple[float, float]:
    return min(float(one.min()) for one in tensors), max(float(one.max()) for one in tensors)


def _finish(
    step: fx.GraphModule, inputs: int, constants: Sequence[Tensor], ranges: dict[str, tuple[float, float]]
) -> bool:
    """Put the constants into a step, and round the outputs of its integer layers, in place; return whether it has any.

    It computes with integers if all of its linear layers do.
    """
    graph = step.graph
    given = [node for node in graph.nodes if node.op == "placeholder"]
    for node, value in zip(given[inputs:], constants, strict=True):
        put_constant(step, node, value.detach())
    for node in graph.nodes:
        if node.target in {QUANTIZE, DEQUANTIZE}:
            node.args = (node.args[0], *Grid.signed(node.args[1:]))
    layers = [node for node in graph.nodes if node.target == LINEAR]
    integer = all(node.args[0].target == DEQUANTIZE and node.args[1].target == DEQUANTIZE_WEIGHT for node in layers)
    weights = {node for node in graph.nodes if node.target == DEQUANTIZE_WEIGHT}
    fold(step, weights if integer else set())
    for node in layers if integer else ():
        users = list(node.users)
        if len(users) == 1 and users[0].target == QUANTIZE:  # the next factor rounds its input
            codes = users[0]
        else:
            with graph.inserting_after(node):
                codes = graph.call_function(QUANTIZE, (node, *Grid.over(*ranges[node.name])))
            with graph.inserting_after(codes):
                values = graph.call_function(DEQUANTIZE, (codes, *codes.args[1:]))
            for user in users:
                user.replace_input_with(node, values)
        widen_tiny_scales(step, node, codes)
    graph.eliminate_dead_code()
    step.recompile()
    return integer


def _turn_around(node: fx.Node, outputs: int) -> bool:
    """Let a loop read a turned sequence from its end, and write its outputs there, without turning either; in place."""
    arguments: Any = node.args
    reader, sequence = node, arguments[2][0]
    while sequence.target in _MOVED and len(sequence.users) == 1:
        reader, sequence = sequence, sequence.all_input_nodes[0]
    turned = [user for part in node.users if part.args[1] == outputs for user in part.users]
    if not all(map(_turns, [sequence, *turned])):
        return False
    reader.replace_input_with(sequence, sequence.all_input_nodes[0])
    for one in turned:
        one.replace_all_uses_with(one.all_input_nodes[0])
    return True


def _turns(node: fx.Node) -> bool:
    """Return whether a node turns the order of the first dimension."""
    return node.target == ATEN.flip.default and list(node.args[1]) == [0]  # type: ignore[arg-type]
