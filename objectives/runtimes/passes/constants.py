"""Constants of a graph: their tensors, and what depends on them alone."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from torch import Tensor, fx

if TYPE_CHECKING:
    from collections.abc import Callable


def constant(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the tensor of a constant node."""
    assert isinstance(node.target, str)
    tensor: Tensor = operator.attrgetter(node.target)(graph_module)
    return tensor


def fold(graph_module: fx.GraphModule, kept: set[fx.Node]) -> None:
    """Replace nodes that depend on constants alone by their values, except the nodes to keep; in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        inputs = node.all_input_nodes
        if node.op != "call_function" or node in kept or not inputs or any(one.op != "get_attr" for one in inputs):
            continue
        values = {one: constant(graph_module, one).detach() for one in inputs}
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        assert callable(node.target)
        function: Callable[..., Tensor] = node.target
        put_constant(graph_module, node, function(*args, **kwargs))


def put_constant(graph_module: fx.GraphModule, node: fx.Node, value: Tensor) -> fx.Node:
    """Replace a node by a constant, and return the node of the constant."""
    name = f"constant_{node.name}"
    graph_module.register_buffer(name, value)
    with graph_module.graph.inserting_before(node):
        replacement = graph_module.graph.get_attr(name)
    node.replace_all_uses_with(replacement)
    graph_module.graph.erase_node(node)
    return replacement


def drop_unused(graph_module: fx.GraphModule) -> None:
    """Remove the constants that nothing reads, which the file would contain; in place."""
    graph = graph_module.graph
    graph.eliminate_dead_code()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [name for name in graph_module.state_dict(keep_vars=True) if name not in used]:
        owner, _, leaf = name.rpartition(".")
        delattr(graph_module.get_submodule(owner), leaf)
