"""Scales of integer weights that are large enough for the 32-bit integers in which kernels add up.

Kernels store the bias of a channel as a 32-bit multiple of the scale of its products, and multiply the sum by a factor
with a lower bound. A channel whose weights are almost zero, such as that of a dead channel after its norm was folded,
has so small a scale that its bias would not fit: it would be clipped, without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from objectives.runtimes.passes.constants import constant
from objectives.runtimes.passes.grid import DEQUANTIZE, Grid

if TYPE_CHECKING:
    from torch import Tensor, fx

MOST_BIAS = 2.0**30  # of a bias, in multiples of the scale: half of the range, so that sums fit too
LEAST_FACTOR = 2.0**-31  # of the scale of the products over that of the output; XNNPACK takes 2**-32 and more


def widen_tiny_scales(graph_module: fx.GraphModule, layer: fx.Node, output: fx.Node | None) -> None:
    """Give the channels of an integer layer whose scale is too small a larger one, in place.

    Their weights are rounded again, by which the output changes less than its own rounding changes it.

    Parameters
    ----------
    graph_module, layer
        The graph, and a layer whose weight and input are integers.
    output
        The quantizer of its output, if there is one.
    """
    weight: Any = layer.args[1]
    codes_node, scale_node, zeros, axis, *ends = weight.args
    codes, scale = constant(graph_module, codes_node), constant(graph_module, scale_node)
    source = layer.all_input_nodes[0]
    while source.target != DEQUANTIZE:  # it may be moved before the layer reads it
        source = source.all_input_nodes[0]
    inputs = Grid.of(source).scale
    bias = layer.args[2] if len(layer.args) > 2 else None  # noqa: PLR2004 - input, weight, bias
    least = torch.zeros_like(scale)
    if bias is not None:
        least = constant(graph_module, bias).abs().to(scale.dtype) / (inputs * MOST_BIAS)  # type: ignore[arg-type]
    if output is not None:
        least = least.clamp_min(LEAST_FACTOR * Grid.of(output).scale / inputs)
    if not bool((scale < least).any()):
        return
    wider = torch.maximum(scale, least)
    shape = [-1 if dimension == axis else 1 for dimension in range(codes.dim())]
    rounded = (codes * (scale / wider).reshape(shape)).round().to(codes.dtype)
    new = [_stored(graph_module, weight, name, one) for name, one in (("codes", rounded), ("scale", wider))]
    with layer.graph.inserting_before(layer):
        copied = layer.graph.call_function(weight.target, (*new, zeros, axis, *ends), dict(weight.kwargs))
    layer.replace_input_with(weight, copied)


def _stored(graph_module: fx.GraphModule, weight: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Store a constant beside a weight, and return its node."""
    key = f"{weight.name}_wider_{name}_{sum('_wider_' in known for known, _ in graph_module.named_buffers())}"
    graph_module.register_buffer(key, value)
    with graph_module.graph.inserting_before(weight):
        return graph_module.graph.get_attr(key)
