"""From a finished network to a graph for runtimes whose integer kernels take and give integers: LiteRT, ExecuTorch.

A finished network rounds the inputs of its layers, each on the grid that was searched for it. Kernels of these runtimes
know more of rounding: a convolution gives integers, an addition takes and gives them, and a tensor has one grid,
whoever reads it. So after every operator that can compute with integers its output is rounded:

- where only rounded inputs of layers read it, and on one grid, on that one: nothing changes;
- elsewhere on 8 bits that cover the calibration inputs and the grids of all readers. That rounds a shortcut, or the
  answer, which the network did not; how far the file is from the network is what its verification tells.

Inputs of layers that compute in floating point are clipped and not rounded: that would gain nothing.

Legend: a `quantizer` is `quantize_per_tensor`; what a `mover` gives lies on the grid of what it takes.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx, nn

from objectives.runtimes.passes.zero_branches import mutates, without_zeros
from objectives.runtimes.runtime import ExportError, has_one_output

if TYPE_CHECKING:
    from collections.abc import Callable

FINEST = 100  # XNNPACK's own bound is 1024
SEEN = 128  # calibration inputs from which ranges are read
LOWEST, HIGHEST = -128, 127
NOTHING_LESS = -3e38  # a clamp at this changes nothing
_ATEN, _OPS = torch.ops.aten, torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = _OPS.quantize_per_tensor.default, _OPS.dequantize_per_tensor.default
WEIGHT = _OPS.dequantize_per_channel.default
_CLAMPS = {_ATEN.relu.default, _ATEN.relu_.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default,
           _ATEN.relu6.default}  # fmt: skip
_FRESH = {_ATEN.relu_.default: _ATEN.relu.default, _ATEN.hardtanh_.default: _ATEN.hardtanh.default}
_MOVERS = {_ATEN.max_pool2d.default, _ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints,
           _ATEN.permute.default, _ATEN.transpose.int, _ATEN.squeeze.dim, _ATEN.unsqueeze.default}  # fmt: skip
_SUMS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
_INTEGERS = {*_SUMS, _ATEN.mean.dim, _ATEN.avg_pool2d.default,
             _ATEN.adaptive_avg_pool2d.default, _ATEN.cat.default}  # fmt: skip
KERNELS = {_ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.linear.default}
_LAYERS = {*KERNELS, _ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv3d.default, _ATEN.conv3d.padding,
           _ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input}  # fmt: skip


class Grid(NamedTuple):
    """Levels of a tensor, as a quantizer takes them."""

    scale: float
    zero: int
    lowest: int = LOWEST
    highest: int = HIGHEST
    dtype: torch.dtype = torch.int8

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest number on it."""
        return (self.lowest - self.zero) * self.scale, (self.highest - self.zero) * self.scale

    @classmethod
    def over(cls, low: float, high: float) -> Grid:
        """Return the grid of 8 bits over a range, in which zero is exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (HIGHEST - LOWEST) or 1.0  # of a tensor of zeros
        return cls(scale, round(LOWEST - low / scale))


def integer_graph(model: nn.Module, example: Tensor, *, floating: bool) -> fx.GraphModule:
    """Return the graph of a finished network for one input at a time, with signed grids after all that gives integers.

    Parameters
    ----------
    model
        In evaluation mode.
    example
        The calibration inputs.
    floating
        Whether the runtime knows more than integers throughout: a layer that computes in floating point may keep its
        weight as integers, and a sum have parts of both kinds.

    Raises
    ------
    ExportError
        If an input is rounded to less than 8 bits, which no kernel does, or there is more than one output.
    """
    graph_module: Any = torch.export.export(model, (example[:1],), strict=False).module(check_guards=False)
    without_zeros(graph_module)
    graph = graph_module.graph
    _clamp_first(graph)
    has_one_output(model, len(graph.output_node().all_input_nodes))
    layers = [node for node in graph.nodes if node.target in _LAYERS]
    integer = {node for node in layers if _is_integer(node)}
    for node in layers:
        if node not in integer:
            _leave_floating(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.target in {QUANTIZE, DEQUANTIZE}:
            node.args = (node.args[0], *_signed(node.args[1:]))
    if any(node.target == QUANTIZE for node in graph.nodes):
        _round_throughout(graph_module, example, integer, mixed=floating)
    if floating:
        for node in layers:
            if node not in integer:
                _keep_floating(node)
    kept = {node for node in graph.nodes if node.target == WEIGHT and (floating or _reader(node) in integer)}
    _fold(graph_module, kept)
    _drop_unused(graph_module)
    graph.lint()
    graph_module.recompile()
    return graph_module  # type: ignore[no-any-return]


def constant(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the tensor that a node reads."""
    assert isinstance(node.target, str)
    found: Tensor = operator.attrgetter(node.target)(graph_module)
    return found


def _clamp_first(graph: fx.Graph) -> None:
    """Clamp before values are moved instead of behind, in place: the kernel of a layer does it on the way.

    Not where something is written in between, or by the clamp itself into what others may see.
    """
    for node in list(graph.nodes):
        while node.target in _CLAMPS and (given := node.all_input_nodes[0]).target in _MOVERS:
            (values,) = given.all_input_nodes
            order = list(graph.nodes)
            between = order[order.index(given) + 1 : order.index(node)]
            seen = mutates(node) and given.target != _ATEN.max_pool2d.default
            if seen or len(given.users) > 1 or len(values.users) > 1 or any(map(mutates, between)):
                break
            node.target = _FRESH.get(node.target, node.target)
            node.replace_all_uses_with(given)
            node.replace_input_with(given, values)
            given.replace_input_with(values, node)
            given.prepend(node)


def _leave_floating(layer: fx.Node) -> None:
    """Give a layer that computes in floating point its inputs clipped as by the network, but not rounded; in place."""
    given = layer.args[0]
    if isinstance(given, fx.Node) and given.target == DEQUANTIZE:
        scale, zero, lowest, highest = given.args[1:5]
        ends = ((lowest - zero) * scale, (highest - zero) * scale)  # type: ignore[operator]
        (values,) = given.all_input_nodes[0].all_input_nodes
        with layer.graph.inserting_before(layer):
            clipped = layer.graph.call_function(_ATEN.clamp.default, (values, *ends))
        layer.replace_input_with(given, clipped)


def _signed(given: tuple[Any, ...]) -> Grid:
    scale, zero, lowest, highest, dtype = given
    if dtype == torch.int8:
        return Grid(*given)
    if highest - lowest != HIGHEST - LOWEST:
        raise ExportError(
            f"inputs of layers are rounded to 8 bits here, or not at all, but got {int(highest + 1).bit_length() - 1} "
            "bits; BitWidths(runtime=...) offers what the runtime computes with"
        )
    return Grid(scale, zero + LOWEST, LOWEST, HIGHEST)


def _reader(node: fx.Node) -> fx.Node:
    return next(iter(node.users))


def _is_integer(layer: fx.Node) -> bool:
    """Whether a layer's weight and input are both integers."""
    if layer.target not in KERNELS:
        return False
    given, weight = layer.args[:2]
    return isinstance(weight, fx.Node) and weight.target == WEIGHT and isinstance(given, fx.Node) and _rooted(given)


def _rooted(node: fx.Node) -> bool:
    """Whether what the node gives lies on a grid."""
    while node.target in _MOVERS:
        node = node.all_input_nodes[0]
    return node.target == DEQUANTIZE


def _keep_floating(layer: fx.Node) -> None:
    """Put operators that change nothing around a layer, in place.

    Without the one behind it its kernel would be joined with a quantizer; without the one before it, a norm's scales
    would be folded into its weight, which is not made of few integers then.
    """
    given, weight = layer.args[:2]
    packed = isinstance(weight, fx.Node) and weight.target == WEIGHT
    if packed and isinstance(given, fx.Node) and not _rooted(given):
        with layer.graph.inserting_before(layer):
            apart = layer.graph.call_function(_ATEN.clamp_min.default, (given, NOTHING_LESS))
        layer.replace_input_with(given, apart)
    last = _clamped(layer)
    for quantizer in [user for user in last.users if user.target == QUANTIZE]:
        lowest, _ = _grid(quantizer).ends
        with layer.graph.inserting_before(quantizer):
            quantizer.replace_input_with(last, layer.graph.call_function(_ATEN.clamp_min.default, (last, lowest)))


def _round_throughout(graph_module: fx.GraphModule, example: Tensor, integer: set[fx.Node], *, mixed: bool) -> None:
    """Round what every operator gives that computes with integers, each tensor on one grid; in place."""
    ranges = _Ranges(graph_module)
    with torch.no_grad():
        for one in example[:SEEN].split(1):
            ranges.run(one)
    for node in list(graph_module.graph.nodes):
        if not mixed and node.target in _INTEGERS and any(map(_rooted, node.all_input_nodes)):
            for given in node.all_input_nodes:  # kernels take all or none as integers
                if not _rooted(given):
                    _round(graph_module.graph, given, ranges.seen)
        gives = (
            node in integer
            or (node.target in _INTEGERS and all(map(_rooted, node.all_input_nodes)))
            or (node.op == "placeholder" and any(user.target == QUANTIZE for user in node.users))
        )
        if gives:
            _round(graph_module.graph, _clamped(node), ranges.seen)


def _clamped(node: fx.Node) -> fx.Node:
    """Return the last of the clamps behind a node, which kernels do on the way."""
    while len(node.users) == 1 and _reader(node).target in _CLAMPS:
        node = _reader(node)
    return node


def _round(graph: fx.Graph, root: fx.Node, seen: dict[str, tuple[float, float]]) -> None:
    """Put one quantizer behind a tensor and behind each that is moved from it, in place of those that are there."""
    members = [root]
    old: list[fx.Node] = []
    others: list[fx.Node] = []
    for member in members:
        for user in member.users:
            (old if user.target == QUANTIZE else members if user.target in _MOVERS else others).append(user)
    grids = {_grid(quantizer) for quantizer in old}
    if len(grids) == 1 and not others:
        (grid,) = grids
    else:  # kernels add only what is not much finer than the sum
        sums = [tuple(end / FINEST for end in seen[user.name]) for user in others if user.target in _SUMS]
        lows, highs = zip(seen[root.name], *sums, *(found.ends for found in grids), strict=True)
        grid = Grid.over(min(lows), max(highs))
    for quantizer in old:
        for dequantizer in list(quantizer.users):
            dequantizer.replace_all_uses_with(quantizer.all_input_nodes[0])
            graph.erase_node(dequantizer)
        graph.erase_node(quantizer)
    for member in members:
        readers = list(member.users)
        with graph.inserting_after(member):
            codes = graph.call_function(QUANTIZE, (member, *grid))
        with graph.inserting_after(codes):
            values = graph.call_function(DEQUANTIZE, (codes, *grid))
        for reader in readers:
            reader.replace_input_with(member, values)


def _grid(quantizer: fx.Node) -> Grid:
    given: Any = quantizer.args[1:]
    return Grid(*given)


class _Ranges(fx.Interpreter):
    """Runs the graph and keeps the ends of every tensor."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.seen: dict[str, tuple[float, float]] = {}

    def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - whatever a node gives
        """Run one node."""
        given = super().run_node(node)
        if node.op != "get_attr" and isinstance(given, Tensor) and given.is_floating_point():
            low, high = self.seen.get(node.name, (0.0, 0.0))
            self.seen[node.name] = min(low, float(given.min())), max(high, float(given.max()))
        return given


def _fold(graph_module: fx.GraphModule, kept: set[fx.Node]) -> None:
    """Replace what depends on constants alone by its value, but for the weights to keep; in place."""
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
    """Replace a node by a constant, and return that."""
    name = f"constant_{node.name}"
    graph_module.register_buffer(name, value)
    with graph_module.graph.inserting_before(node):
        found = graph_module.graph.get_attr(name)
    node.replace_all_uses_with(found)
    graph_module.graph.erase_node(node)
    return found


def _drop_unused(graph_module: fx.GraphModule) -> None:
    """Drop the constants that nothing reads, which a file would hold; in place."""
    graph = graph_module.graph
    graph.eliminate_dead_code()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [name for name in graph_module.state_dict(keep_vars=True) if name not in used]:
        owner, _, leaf = name.rpartition(".")
        delattr(graph_module.get_submodule(owner), leaf)
