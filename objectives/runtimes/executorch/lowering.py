"""Lowering of a finished network to an ExecuTorch file for XNNPACK.

Import this module only where the ``executorch`` extra is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import CONSTANT_TENSOR_ALIGNMENT
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from torch import fx

from objectives.flat import flat
from objectives.runtimes.ends import WithEnds, free_dimensions, network_of
from objectives.runtimes.errors import ExportError
from objectives.runtimes.executorch.loading import DEFAULT_METHOD
from objectives.runtimes.executorch.packing import Constants, packing
from objectives.runtimes.exporting import exporting
from objectives.runtimes.passes.constants import constant
from objectives.runtimes.passes.grid import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE
from objectives.runtimes.passes.integers import INTEGER_LAYERS, exported, integer_graph
from objectives.runtimes.passes.ranges import one_by_one
from objectives.runtimes.runtime import export_error
from objectives.runtimes.signatures import entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from objectives.trees import Tree

_MEAN, _CONCATENATION = torch.ops.aten.mean.dim, torch.ops.aten.cat.default
_IMAGE_DIMENSIONS = 4  # of a batch of images: N, C, H, W
UNITS = 32, 16, 8, 4, 2  # of which free sizes are multiples: the strides of networks (chosen)
LARGER = 2  # times as large as the example may images be (chosen)
_ALL_ARGUMENTS = 3  # number of arguments, of a layer (input, weight, bias) and of a mean (input, dimensions, keepdim)


class _Method(NamedTuple):
    """The graph of an entry point, an example for it, and the sizes that it takes; see `_free_sizes`."""

    graph_module: fx.GraphModule
    example: tuple[Tensor, ...]
    sizes: tuple[dict[int, Any], ...] | None


def lower(model: nn.Module, example: Tree) -> tuple[bytes, list[str]]:
    """Return the bytes of the file, and the operators that XNNPACK does not execute; see `Runtime.export`."""
    with exporting():
        try:
            methods = {name: _method(model, one) for name, one in entries(model, example, DEFAULT_METHOD)}
            constants = Constants()
            found = _lowered(methods, constants)
            if repeated := constants.repeated():  # by steps of a recurrent layer, each a part of its own, or by methods
                found = _lowered(methods, Constants(repeated))
        except ExportError:
            raise
        except Exception as error:  # the exporter raises exceptions of any type
            raise export_error(network_of(model), "an ExecuTorch", error) from error
    return found


def _method(model: nn.Module, example: Tree) -> _Method:
    """Return the entry point for inputs of the size of an example."""
    network = flat(model.of_arithmetic() if isinstance(model, WithEnds) else model, example)
    sizes = _free_sizes(model, network.example)
    examples = one_by_one(network.example)
    graph_module = integer_graph(network.module, examples, mixed=False, sizes=sizes)
    _complete(graph_module)
    return _Method(graph_module, examples[0], sizes)


def _lowered(methods: Mapping[str, _Method], constants: Constants) -> tuple[bytes, list[str]]:
    """Return the bytes of the file of these entry points, and the operators that XNNPACK does not execute."""
    with packing(constants):
        edge = to_edge_transform_and_lower(
            {name: exported(*method) for name, method in methods.items()},
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        nodes = [node for name in methods for node in edge.exported_program(name).graph.nodes]
        portable = [str(node.target._op) for node in nodes if hasattr(node.target, "_op")]  # noqa: SLF001 - its name
        aligned = ExecutorchBackendConfig(segment_alignment=CONSTANT_TENSOR_ALIGNMENT)
        return bytes(edge.to_executorch(aligned).buffer), portable


def _free_sizes(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...] | None:
    """Return the sizes that the file takes where it takes several; None otherwise.

    Memory is planned when the file is written, so that they have a bound: twice the size of the example. They are
    multiples of a number that divides this size, since networks with strides take no others.
    """
    places = [free_dimensions(model, tensor) for tensor in example]
    if not any(places):
        return None
    found: list[dict[int, Any]] = []
    for number, (tensor, dimensions) in enumerate(zip(example, places, strict=True)):
        found.append({})
        for dimension in dimensions:
            size = tensor.shape[dimension]
            if size == 1:
                continue
            unit = next(unit for unit in (*UNITS, 1) if size % unit == 0 and size >= 2 * unit)
            count = torch.export.Dim(f"size_{number}_{dimension}", min=1, max=LARGER * size // unit)
            found[-1][dimension] = unit * count
    return tuple(found)


def _complete(graph_module: fx.GraphModule) -> None:
    """Write layers with a bias, and means over the last two dimensions that keep them, as XNNPACK needs; in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target == DEQUANTIZE:  # copied for each reader: the partitioner fuses readers of one, even into a cycle
            for user in list(node.users)[1:]:
                with graph.inserting_after(node):
                    user.replace_input_with(node, graph.node_copy(node))
        quantizer = next((user for user in node.users if user.target == QUANTIZE), None)
        if node.target == _CONCATENATION and quantizer is not None:  # its inputs must have the scale of its output
            with graph.inserting_before(node):
                for part in dict.fromkeys(node.all_input_nodes):
                    codes = graph.call_function(QUANTIZE, (part, *quantizer.args[1:]))
                    node.replace_input_with(part, graph.call_function(DEQUANTIZE, (codes, *quantizer.args[1:])))
        if node.target in INTEGER_LAYERS and (len(node.args) < _ALL_ARGUMENTS or node.args[2] is None):
            assert isinstance(node.args[1], fx.Node)
            outputs = constant(
                graph_module,
                node.args[1].all_input_nodes[0] if node.args[1].target == DEQUANTIZE_WEIGHT else node.args[1],
            )
            name = f"bias_{node.name}"
            graph_module.register_buffer(name, torch.zeros(len(outputs)))
            with graph.inserting_before(node):
                bias = graph.get_attr(name)
            node.args = (*node.args[:2], bias, *node.args[_ALL_ARGUMENTS:])
        elif (
            node.target == _MEAN
            and sorted(d % _IMAGE_DIMENSIONS for d in node.args[1]) == [2, 3]
            and len(node.args) < _ALL_ARGUMENTS
        ):
            with graph.inserting_before(node):
                kept = graph.call_function(_MEAN, (node.args[0], [-1, -2], True))
                flat = graph.call_function(torch.ops.aten.flatten.using_ints, (kept, 1))
            node.replace_all_uses_with(flat)
            graph.erase_node(node)
            quantizer = next((user for user in flat.users if user.target == QUANTIZE), None)
            if quantizer is not None:  # XNNPACK recognizes an integer operator by the quantizers directly around it
                with graph.inserting_before(flat):
                    codes = graph.call_function(QUANTIZE, (kept, *quantizer.args[1:]))
                    flat.replace_input_with(kept, graph.call_function(DEQUANTIZE, (codes, *quantizer.args[1:])))
    graph_module.recompile()
