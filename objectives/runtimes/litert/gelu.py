"""GELU in operators that TFLite Micro has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from objectives.runtimes.passes.zero_branches import ATEN

if TYPE_CHECKING:
    from torch import fx

_CUBE = 0.044715
# erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2) with t = 1 / (1 + p x) for x >= 0, with an error of at most 1.5e-7:
# Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 7.1.26
_P, _FACTORS = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def write_out_gelu(graph_module: fx.GraphModule) -> None:
    """Replace GELU by sums, products, a quotient and an exponential, or a sigmoid where it asks for tanh, in place."""
    graph = graph_module.graph
    for node in [node for node in graph.nodes if node.target == ATEN.gelu.default]:
        with graph.inserting_before(node):
            write = _by_sigmoid if node.kwargs.get("approximate", "none") == "tanh" else _by_exponential
            node.replace_all_uses_with(write(graph, node.args[0]))
        graph.erase_node(node)
    graph_module.recompile()


def _by_exponential(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Return x/2 + |x|/2 erf(|x| / sqrt(2))."""
    size = graph.call_function(ATEN.abs.default, (x,))
    below = _sum(graph, _product(graph, size, _P / math.sqrt(2)), 1.0)
    t = graph.call_function(ATEN.reciprocal.default, (below,))
    total = _product(graph, t, _FACTORS[-1])
    for factor in reversed(_FACTORS[:-1]):
        total = _product(graph, _sum(graph, total, factor), t)
    exponent = _product(graph, size, _product(graph, size, -0.5))
    tail = _product(graph, total, graph.call_function(ATEN.exp.default, (exponent,)))  # 1 - erf
    part = graph.call_function(ATEN.sub.Tensor, (size, _product(graph, size, tail)))
    return _product(graph, _sum(graph, x, part), 0.5)


def _by_sigmoid(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Return x/2 (1 + tanh(z)) as x sigmoid(2 z), since the converter finds GELU in the first form.

    There z = sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2).
    """
    cube = _product(graph, _product(graph, x, x), x)
    twice = _product(graph, _sum(graph, x, _product(graph, cube, _CUBE)), 2 * math.sqrt(2 / math.pi))
    return _product(graph, x, graph.call_function(ATEN.sigmoid.default, (twice,)))


def _sum(graph: fx.Graph, one: fx.Node, other: fx.Node | float) -> fx.Node:
    return graph.call_function(ATEN.add.Tensor, (one, other))


def _product(graph: fx.Graph, one: fx.Node, other: fx.Node | float) -> fx.Node:
    return graph.call_function(ATEN.mul.Tensor, (one, other))
