"""GELU in operators that TFLite Micro has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from objectives.runtimes.passes.zero_branches import ATEN

if TYPE_CHECKING:
    from torch import fx

# erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2) with t = 1 / (1 + p x) for x >= 0, with an error of at most 1.5e-7:
# Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 7.1.26
_P, _FACTORS = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def write_out_gelu(graph_module: fx.GraphModule) -> None:
    """Replace GELU by sums, products, a quotient and an exponential, in place: x/2 + |x|/2 erf(|x| / sqrt(2))."""
    graph = graph_module.graph
    for node in [node for node in graph.nodes if node.target == ATEN.gelu.default and not node.kwargs]:
        x = node.args[0]
        with graph.inserting_before(node):
            size = graph.call_function(ATEN.abs.default, (x,))
            below = graph.call_function(ATEN.mul.Tensor, (size, _P / math.sqrt(2)))
            t = graph.call_function(ATEN.reciprocal.default, (graph.call_function(ATEN.add.Tensor, (below, 1.0)),))
            total = graph.call_function(ATEN.mul.Tensor, (t, _FACTORS[-1]))
            for factor in reversed(_FACTORS[:-1]):
                total = graph.call_function(ATEN.mul.Tensor, (graph.call_function(ATEN.add.Tensor, (total, factor)), t))
            square = graph.call_function(ATEN.mul.Tensor, (size, graph.call_function(ATEN.mul.Tensor, (size, -0.5))))
            tail = graph.call_function(ATEN.mul.Tensor, (total, graph.call_function(ATEN.exp.default, (square,))))
            # |x| erf = |x| - |x| tail
            part = graph.call_function(ATEN.sub.Tensor, (size, graph.call_function(ATEN.mul.Tensor, (size, tail))))
            whole = graph.call_function(ATEN.mul.Tensor, (graph.call_function(ATEN.add.Tensor, (x, part)), 0.5))
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
    graph_module.recompile()
