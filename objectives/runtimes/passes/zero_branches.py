"""Removal of operators that change nothing from a graph, above all of sums with zeros that omitted branches leave."""

from __future__ import annotations

import torch
from torch import fx

ATEN = torch.ops.aten
ADDITIONS = {ATEN.add.Tensor, ATEN.add_.Tensor}
_PRODUCTS = {ATEN.mul.Tensor, ATEN.mul_.Tensor}
_ZERO_TENSORS = {ATEN.new_zeros.default, ATEN.zeros.default}
_HARDTANHS = {ATEN.hardtanh.default, ATEN.hardtanh_.default}
_RELUS = {ATEN.relu.default, ATEN.relu_.default}
_DROPOUTS = {ATEN.dropout.default, ATEN.dropout_.default, ATEN.feature_dropout.default,
             ATEN.feature_dropout_.default, ATEN.alpha_dropout.default, ATEN.alpha_dropout_.default,
             ATEN.feature_alpha_dropout.default, ATEN.feature_alpha_dropout_.default}  # fmt: skip
# operators with one input whose output is zero where the input is
_ZERO_PRESERVING = {*_RELUS, ATEN.hardswish.default, ATEN.hardswish_.default, ATEN.silu.default, ATEN.silu_.default,
                    ATEN.relu6.default, ATEN.relu6_.default, ATEN.leaky_relu.default, ATEN.leaky_relu_.default,
                    ATEN.gelu.default, ATEN.dropout.default, ATEN.mean.dim, ATEN.avg_pool2d.default,
                    ATEN.adaptive_avg_pool2d.default, ATEN.max_pool2d.default, ATEN.view.default,
                    ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.permute.default, ATEN.transpose.int,
                    ATEN.unsqueeze.default, ATEN.clone.default}  # fmt: skip
_OPERANDS = 2  # tensors of a sum


def remove_zero_branches(graph_module: fx.GraphModule) -> None:
    """Remove sums with zeros and the operators that compute the zeros, copies, dropout, and repeated ReLUs; in place.

    If something other than zeros is written into the zeros, no sum is removed. A sum that is written into is kept if
    the write would become visible elsewhere.

    Parameters
    ----------
    graph_module
        A graph captured by `torch.export`. Its outputs do not change.
    """
    graph = graph_module.graph
    zero_based, sums = _sums_with_zeros(graph)
    for node, kept in sums.items():  # the argument is read here, since an earlier removal may have replaced it
        _replace(node, node.args[kept], zero_based)
    for node in list(graph.nodes):
        if _is_identity(node):
            _replace(node, node.all_input_nodes[0], zero_based)
    for node in reversed(list(graph.nodes)):  # dead code elimination keeps in-place operators, which have side effects
        if node in zero_based and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _sums_with_zeros(graph: fx.Graph) -> tuple[set[fx.Node], dict[fx.Node, int]]:
    """Return the nodes computed from zeros alone, and for each sum with zeros the index of the argument to keep.

    Both are empty if anything is written into zeros that are read otherwise than as the result of the write.
    """
    zeros: set[fx.Node] = set()
    zero_based: set[fx.Node] = set()
    sums: dict[fx.Node, int] = {}
    for node in graph.nodes:
        inputs = [one for one in node.args if isinstance(one, fx.Node)] or node.all_input_nodes
        if inputs and zero_based.issuperset(inputs):
            zero_based.add(node)
        if _returns_zeros(node, inputs, zeros):
            zeros.add(node)
            zero_based.add(node)
        elif node.target in ADDITIONS and len(inputs) == _OPERANDS and zeros.intersection(inputs) and not node.kwargs:
            sums[node] = 0 if inputs[1] in zeros else 1
        written = inputs[0] if inputs and mutates(node) and node not in zeros else None
        if written in zero_based and (node not in sums or len(written.users) > 1):
            return set(), {}
    return zero_based, sums


def _returns_zeros(node: fx.Node, inputs: list[fx.Node], zeros: set[fx.Node]) -> bool:
    """Return whether a node returns zeros and writes into no input other than zeros."""
    zero_inputs = [one for one in inputs if one in zeros]
    if node.target in _HARDTANHS:
        low, high = (float(bound) for bound in node.args[1:3])  # type: ignore[arg-type]
        return len(zero_inputs) == 1 and low <= 0 <= high
    return (
        node.target in _ZERO_TENSORS
        or (node.target in _ZERO_PRESERVING and len(zero_inputs) == len(inputs) == 1)
        or (node.target in _PRODUCTS and len(zero_inputs) > 0 and (inputs[0] in zeros or not mutates(node)))
        or (node.target in ADDITIONS and len(zero_inputs) == _OPERANDS)
    )


def _is_identity(node: fx.Node) -> bool:
    """Return whether a node returns its input: a ReLU after a ReLU, dropout, or a copy with the same strides."""
    if node.target in _RELUS:
        return node.all_input_nodes[0].target in _RELUS
    if node.target in _DROPOUTS:
        return node.args[2:] == (False,)
    return node.target == ATEN.clone.default and (
        node.meta["val"].stride() == node.all_input_nodes[0].meta["val"].stride()
    )


def mutates(node: fx.Node) -> bool:
    """Return whether a node writes into its input."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _is_written(node: fx.Node, ignored: fx.Node) -> bool:
    """Return whether any node except `ignored` writes into the output of a node, or into a view of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if user is ignored or schema is None or user.args[:1] != (node,):
            continue
        if schema.is_mutable or (any(output.alias_info for output in schema.returns) and _is_written(user, ignored)):
            return True
    return False


def _replace(node: fx.Node, other: object, zero_based: set[fx.Node]) -> None:
    """Replace a node by another of the same shape and erase it, if that changes no output of the graph.

    The outputs of the graph themselves are kept. Writes into the node would become writes into the other node, so a
    node that is written into is replaced only if nothing else reads the other node.
    """
    if not isinstance(other, fx.Node) or any(user.op == "output" for user in node.users):
        return
    if node.meta["val"].shape != other.meta["val"].shape:
        return
    if _is_written(node, node) or _is_written(other, node):
        readers = [user for user in other.users if user is not node and user not in zero_based]
        if readers or other.op == "placeholder":
            return
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
