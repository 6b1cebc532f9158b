"""Sums with zeros are left out of a graph, which are left of a branch that a network does without, and other no-ops."""

from __future__ import annotations

import torch
from torch import fx

_ATEN = torch.ops.aten
_ZEROS = {_ATEN.new_zeros.default, _ATEN.zeros.default}
_BOUNDED = {_ATEN.hardtanh.default, _ATEN.hardtanh_.default}
_CLAMPS = {_ATEN.relu.default, _ATEN.relu_.default}
_SUMS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
_DROPOUTS = {_ATEN.dropout.default, _ATEN.dropout_.default, _ATEN.feature_dropout.default,
             _ATEN.feature_dropout_.default, _ATEN.alpha_dropout.default, _ATEN.alpha_dropout_.default,
             _ATEN.feature_alpha_dropout.default, _ATEN.feature_alpha_dropout_.default}  # fmt: skip
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
    """Leave out what adds zeros and what makes them, copies, dropout, and a ReLU right behind another; in place.

    Where something else is written into the zeros all stays as it is, and so does a sum that something is written into,
    where that would be seen elsewhere.

    Parameters
    ----------
    graph_module
        As `torch.export` captures it. What it answers stays the same.
    """
    graph = graph_module.graph
    hollow, sums = _looked(graph)
    for node, left in sums.items():  # an argument may have been replaced since
        _replace(node, node.args[left], hollow)
    for node in list(graph.nodes):
        if _repeats(node):
            _replace(node, node.all_input_nodes[0], hollow)
    for node in reversed(list(graph.nodes)):  # an operator in place counts as one with effects, and would stay
        if node in hollow and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _looked(graph: fx.Graph) -> tuple[set[fx.Node], dict[fx.Node, int]]:
    """Return what is made of zeros alone, and which argument is left of each sum with zeros.

    Nothing, where anything is written into zeros that is read otherwise than as the result.
    """
    zeros: set[fx.Node] = set()
    hollow: set[fx.Node] = set()
    sums: dict[fx.Node, int] = {}
    for node in graph.nodes:
        given = [one for one in node.args if isinstance(one, fx.Node)] or node.all_input_nodes
        if given and hollow.issuperset(given):
            hollow.add(node)
        if _gives_zeros(node, given, zeros):
            zeros.add(node)
            hollow.add(node)
        elif node.target in _SUMS and len(given) == BOTH and zeros.intersection(given) and not node.kwargs:
            sums[node] = 0 if given[1] in zeros else 1
        into = given[0] if given and mutates(node) and node not in zeros else None
        if into in hollow and (node not in sums or len(into.users) > 1):
            return set(), {}
    return hollow, sums


def _gives_zeros(node: fx.Node, given: list[fx.Node], zeros: set[fx.Node]) -> bool:
    """Whether a node gives zeros, and leaves all that it is given as it was but for zeros."""
    silent = [one for one in given if one in zeros]
    if node.target in _BOUNDED:
        low, high = (float(bound) for bound in node.args[1:3])  # type: ignore[arg-type]
        return len(silent) == 1 and low <= 0 <= high
    return (
        node.target in _ZEROS
        or (node.target in _KEEPING and len(silent) == len(given) == 1)
        or (node.target in _PRODUCTS and len(silent) > 0 and (given[0] in zeros or not mutates(node)))
        or (node.target in _SUMS and len(silent) == BOTH)
    )


def _repeats(node: fx.Node) -> bool:
    """Whether a node gives what it is given: a ReLU behind another, dropout, or a copy that lies in memory alike."""
    if node.target in _CLAMPS:
        return node.all_input_nodes[0].target in _CLAMPS
    if node.target in _DROPOUTS:
        return node.args[2:] == (False,)
    return node.target == _ATEN.clone.default and (
        node.meta["val"].stride() == node.all_input_nodes[0].meta["val"].stride()
    )


def mutates(node: fx.Node) -> bool:
    """Whether a node writes into what it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _written(node: fx.Node, but: fx.Node) -> bool:
    """Whether something writes into what a node gives, or into a view of it, but for one other node."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if user is but or schema is None or user.args[:1] != (node,):
            continue
        if schema.is_mutable or (any(given.alias_info for given in schema.returns) and _written(user, but)):
            return True
    return False


def _replace(node: fx.Node, other: object, hollow: set[fx.Node]) -> None:
    """Let all that reads a node read another of the same shape, and erase it, where that changes no answer.

    The graph's own outputs stay. What is written into a node would be written into the other too, so nothing else may
    read that.
    """
    if not isinstance(other, fx.Node) or any(user.op == "output" for user in node.users):
        return
    if node.meta["val"].shape != other.meta["val"].shape:
        return
    if _written(node, node) or _written(other, node):
        readers = [user for user in other.users if user is not node and user not in hollow]
        if readers or other.op == "placeholder":
            return
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
