"""Sums with zeros are left out of a graph: what is left of a branch that a network does without."""

from __future__ import annotations

import torch
from torch import fx

_ATEN = torch.ops.aten
_ZEROS = {_ATEN.new_zeros.default, _ATEN.zeros.default}
_CLAMPS = {_ATEN.relu.default, _ATEN.relu_.default}
_SUMS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
_PRODUCTS = {_ATEN.mul.Tensor, _ATEN.mul_.Tensor}
# of zeros these give zeros
_KEEPING = {*_CLAMPS, _ATEN.hardswish.default, _ATEN.hardswish_.default, _ATEN.silu.default, _ATEN.silu_.default,
            _ATEN.relu6.default, _ATEN.relu6_.default, _ATEN.leaky_relu.default, _ATEN.leaky_relu_.default,
            _ATEN.gelu.default, _ATEN.dropout.default, _ATEN.mean.dim, _ATEN.avg_pool2d.default,
            _ATEN.adaptive_avg_pool2d.default, _ATEN.max_pool2d.default, _ATEN.view.default, _ATEN.reshape.default,
            _ATEN.flatten.using_ints, _ATEN.permute.default, _ATEN.transpose.int, _ATEN.unsqueeze.default,
            _ATEN.clone.default}  # fmt: skip
BOTH = 2


def without_zeros(graph_module: fx.GraphModule) -> None:
    """Leave out what adds zeros and what makes them, and a ReLU right behind another; in place.

    Where something else is written into the zeros, all stays as it is.

    Parameters
    ----------
    graph_module
        As `torch.export` captures it. What it answers stays the same.
    """
    graph = graph_module.graph
    hollow, sums = _looked(graph)
    for node, left in sums.items():
        _replace(node, left)
    for node in list(graph.nodes):
        if node.target in _CLAMPS and node.all_input_nodes[0].target in _CLAMPS:
            _replace(node, node.all_input_nodes[0])
    for node in reversed(list(graph.nodes)):  # an operator in place counts as one with effects, and would stay
        if node in hollow and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _looked(graph: fx.Graph) -> tuple[set[fx.Node], dict[fx.Node, fx.Node]]:
    """Return what is made of zeros alone, and what is left of each sum with zeros; nothing if they are written to."""
    zeros: set[fx.Node] = set()
    hollow: set[fx.Node] = set()
    sums: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        given = [one for one in node.args if isinstance(one, fx.Node)] or node.all_input_nodes
        silent = [one for one in given if one in zeros]
        if given and hollow.issuperset(given):
            hollow.add(node)
        if _gives_zeros(node, given, silent):
            zeros.add(node)
            hollow.add(node)
        elif node.target in _SUMS and len(given) == BOTH and silent and not node.kwargs:
            sums[node] = given[0] if given[1] in zeros else given[1]
        if _written(node, given, hollow, sums):
            return set(), {}
    return hollow, sums


def _gives_zeros(node: fx.Node, given: list[fx.Node], silent: list[fx.Node]) -> bool:
    """Whether a node gives zeros, of what it is given and what of that is zeros."""
    return (
        node.target in _ZEROS
        or (node.target in _KEEPING and len(silent) == len(given) == 1)
        or (node.target in _PRODUCTS and len(silent) > 0)
        or (node.target in _SUMS and len(silent) == BOTH)
    )


def _written(node: fx.Node, given: list[fx.Node], hollow: set[fx.Node], sums: dict[fx.Node, fx.Node]) -> bool:
    """Whether an operator writes into zeros what is read otherwise than as its result."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not given or given[0] not in hollow or node in hollow:
        return False
    return node not in sums or len(given[0].users) > 1


def _replace(node: fx.Node, other: fx.Node) -> None:
    """Let all that reads a node read another of the same shape, but for the graph's own outputs; erase the node."""
    if node.meta["val"].shape == other.meta["val"].shape and all(user.op != "output" for user in node.users):
        node.replace_all_uses_with(other)
        node.graph.erase_node(node)
