"""Lower a finished network to an ExecuTorch file for XNNPACK.

Import it only where the ``executorch`` extra is known to be there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    CONSTANT_TENSOR_ALIGNMENT,
    serialize_xnnpack_binary,
)
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir._serialize._named_data_store import NamedDataStore
from torch import fx

from objectives.runtimes.integers import DEQUANTIZE, KERNELS, WEIGHT, constant, integer_graph
from objectives.runtimes.runtime import ExportError, refused, silence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNGraph
    from torch import Tensor, nn

_MEAN = torch.ops.aten.mean.dim
IMAGE = 4  # dimensions of a batch of images
BIASED = 3  # arguments of a layer with a bias: input, weight, bias


def lowered(model: nn.Module, example: Tensor) -> tuple[bytes, list[str]]:
    """Return the bytes of the file, and the operators that XNNPACK does not take; see `Runtime.export`."""
    with silence(), torch.no_grad(), _constants_inline():
        try:
            graph_module = integer_graph(model, example, floating=False)
            _complete(graph_module)
            program = torch.export.export(graph_module, (example[:1].cpu(),), strict=False)
            edge = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            nodes = edge.exported_program().graph.nodes
            left = [str(node.target._op) for node in nodes if hasattr(node.target, "_op")]  # noqa: SLF001 - its name
            aligned = ExecutorchBackendConfig(segment_alignment=CONSTANT_TENSOR_ALIGNMENT)
            return bytes(edge.to_executorch(aligned).buffer), left
        except ExportError:
            raise
        except Exception as error:  # the parts of the exporter raise whatever they do
            raise refused(model, "an ExecuTorch", error) from error


@contextlib.contextmanager
def _constants_inline() -> Iterator[None]:
    """Put the constants of XNNPACK's part of a file behind its graph, where the runtime looks for what has no name.

    The exporter names every weight, bias and vector of scales by a digest of 64 letters, which is written twice, and
    gives each a segment of its own, so that files may share them: more than half of the bytes of a small network. It
    has no option for that.
    """
    known: dict[str, bytes] = {}

    class Inline(NamedDataStore):  # type: ignore[misc]
        def add_named_data(self, key: str, data: Any, *_: object, **__: object) -> None:  # noqa: ANN401 - bytes or alike
            known[key] = bytes(data)

    def serialized(graph: XNNGraph, constants: bytearray) -> bytes:
        placed: dict[str, int] = {}
        for entry in graph.constant_data:
            if entry.named_key and entry.named_key not in placed:
                constants.extend(bytes(-len(constants) % CONSTANT_TENSOR_ALIGNMENT))
                placed[entry.named_key] = len(constants)
                constants.extend(known[entry.named_key])
            entry.offset, entry.named_key = placed.get(entry.named_key, 0), None
        return bytes(serialize_xnnpack_binary(graph, constants))

    with (
        patch.object(xnnpack_preprocess, "NamedDataStore", Inline),
        patch.object(xnnpack_preprocess, "serialize_xnnpack_binary", serialized),
    ):
        yield


def _complete(graph_module: fx.GraphModule) -> None:
    """Write layers and means as XNNPACK takes them: with a bias, and over the last two dimensions, kept; in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target == DEQUANTIZE:  # the partitioner joins what shares one, also where that makes a circle
            for user in list(node.users)[1:]:
                with graph.inserting_after(node):
                    user.replace_input_with(node, graph.node_copy(node))
        if node.target in KERNELS and (len(node.args) < BIASED or node.args[2] is None):
            assert isinstance(node.args[1], fx.Node)
            outputs = constant(
                graph_module, node.args[1].all_input_nodes[0] if node.args[1].target == WEIGHT else node.args[1]
            )
            name = f"bias_{node.name}"
            graph_module.register_buffer(name, torch.zeros(len(outputs)))
            with graph.inserting_before(node):
                bias = graph.get_attr(name)
            node.args = (*node.args[:2], bias, *node.args[BIASED:])
        elif node.target == _MEAN and sorted(d % IMAGE for d in node.args[1]) == [2, 3] and len(node.args) < BIASED:
            with graph.inserting_before(node):
                kept = graph.call_function(_MEAN, (node.args[0], [-1, -2], True))
                flat = graph.call_function(torch.ops.aten.flatten.using_ints, (kept, 1))
            node.replace_all_uses_with(flat)
            graph.erase_node(node)
    graph_module.recompile()
