"""The graph of a finished network for runtimes whose integer kernels read and write integers: LiteRT and ExecuTorch.

A finished network rounds the inputs of its layers, each on the grid that the search chose. The kernels of these
runtimes need more rounding: a convolution outputs integers, an addition reads and writes integers, and a tensor has one
grid for all its readers. So the output of every operator that can compute with integers is rounded:

- if it is an average of a window or a concatenation that only floating-point operators such as norms read: not at all,
  since they may enlarge what is small on the kernels' grid for inputs and output;
- if it is any other average of a window: on the grid of its input; so is a concatenation whose inputs have one grid;
- if only rounded inputs of layers read it, all on one grid: on that grid, which changes nothing;
- otherwise to 8 bits that cover the range on the calibration inputs and the grids of all readers; a layer that clips
  its input then rounds it again, on its own grid. This also rounds tensors that the network does not round, such as
  shortcuts and outputs; verification measures the resulting error.

The inputs of layers that compute in floating point are clipped but not rounded, since rounding would gain nothing.

Legend: a `quantizer` is a `quantize_per_tensor`; the output of a `mover` lies on the grid of its input.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from objectives.flat import by_argument
from objectives.runtimes.passes.constants import drop_unused, fold
from objectives.runtimes.passes.grid import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, Grid
from objectives.runtimes.passes.ranges import RangeObserver
from objectives.runtimes.passes.tiny_scales import widen_tiny_scales
from objectives.runtimes.passes.zero_branches import ADDITIONS, ATEN, mutates, remove_zero_branches

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE_RATIO = 100  # largest scale of a sum over the scale of a term (chosen; the bound of XNNPACK is 1024)
NO_LOWER_BOUND = -3e38  # a clamp at this value changes no activation
ALMOST_ONE = 1 + 2.0**-23  # a factor that the converter keeps
# clamps that kernels fuse, and the out-of-place variants of in-place clamps
_FUSED_CLAMPS = {ATEN.relu.default, ATEN.relu_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default,
                 ATEN.relu6.default}  # fmt: skip
_OUT_OF_PLACE = {ATEN.relu_.default: ATEN.relu.default, ATEN.hardtanh_.default: ATEN.hardtanh.default}
_MOVERS = {ATEN.max_pool2d.default, ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints,
           ATEN.permute.default, ATEN.transpose.int, ATEN.squeeze.dim, ATEN.unsqueeze.default}  # fmt: skip
_SPLITS = {ATEN.split.Tensor, ATEN.split_with_sizes.default, ATEN.chunk.default, ATEN.unbind.int}  # of many outputs
_PARTS = {operator.getitem, ATEN.slice.Tensor, ATEN.select.int, ATEN.contiguous.default, *_SPLITS}
_INTEGER_OPERATORS = {*ADDITIONS, ATEN.mean.dim, ATEN.avg_pool2d.default,
                      ATEN.adaptive_avg_pool2d.default, ATEN.cat.default}  # fmt: skip
INTEGER_LAYERS = {ATEN.conv2d.default, ATEN.conv2d.padding, ATEN.linear.default}  # layers with integer kernels
_ATEN_LAYERS = {*INTEGER_LAYERS, ATEN.conv1d.default, ATEN.conv1d.padding, ATEN.conv3d.default, ATEN.conv3d.padding,
                ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input}  # fmt: skip


def integer_graph(
    model: nn.Module,
    examples: Sequence[tuple[Tensor, ...]],
    *,
    mixed: bool,
    unpacks: bool | None = None,
    sizes: tuple[dict[int, Any], ...] | None = None,
) -> fx.GraphModule:
    """Return the graph of a finished network for one input at a time, with signed grids after all integer operators.

    Parameters
    ----------
    model
        A network in evaluation mode that takes tensors one after another.
    examples
        The calibration inputs, one example after another: see `one_by_one`.
    mixed
        Whether the runtime can mix integers and floating point in a sum, which may have terms of both kinds.
    unpacks
        Whether a layer that computes in floating point may store its weight as integers; by default `mixed`.
    sizes
        The dimensions of each input that may have several sizes, as `torch.export` takes them.

    Raises
    ------
    ExportError
        If an input is rounded to less than 8 bits, for which there is no kernel.
    """
    graph_module: Any = exported(model, examples[0], sizes).module(check_guards=False)
    remove_zero_branches(graph_module)
    graph = graph_module.graph
    _clamp_before_movers(graph)
    layers = [node for node in graph.nodes if node.target in _ATEN_LAYERS]
    integer = {node for node in layers if _is_integer(node)}
    for node in layers:
        if node not in integer:
            _clip_float_input(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.target in {QUANTIZE, DEQUANTIZE}:
            node.args = (node.args[0], *Grid.signed(node.args[1:]))
    if any(node.target == QUANTIZE for node in graph.nodes):
        _round_outputs(graph_module, examples, integer, mixed=mixed)
    if mixed:
        for node in layers:
            if node not in integer:
                _isolate_float_layer(node)
    unpacks = mixed if unpacks is None else unpacks
    kept = {node for node in graph.nodes if node.target == DEQUANTIZE_WEIGHT and (unpacks or _reader(node) in integer)}
    kept |= {node for node in graph.nodes if node.target == DEQUANTIZE}  # also of a constant that integers are added to
    fold(graph_module, kept)
    for node in integer:
        output = next((user for user in _last_clamp(node).users if user.target == QUANTIZE), None)
        widen_tiny_scales(graph_module, node, output)
    drop_unused(graph_module)
    graph.lint()
    graph_module.recompile()
    return graph_module  # type: ignore[no-any-return]


def exported(
    model: nn.Module, example: tuple[Tensor, ...], sizes: tuple[dict[int, Any], ...] | None
) -> torch.export.ExportedProgram:
    """Return the program of a network; `sizes` as in `integer_graph`."""
    shapes = None if sizes is None else by_argument(model, sizes)
    return torch.export.export(model, example, dynamic_shapes=shapes, strict=False)


def _clamp_before_movers(graph: fx.Graph) -> None:
    """Move clamps before movers, in place, so that the kernel of the layer fuses them.

    A clamp is not moved if anything is written in between, or if it writes into a tensor that has other readers.
    """
    for node in list(graph.nodes):
        while node.target in _FUSED_CLAMPS and (mover := node.all_input_nodes[0]).target in _MOVERS:
            (values,) = mover.all_input_nodes
            order = list(graph.nodes)
            between = order[order.index(mover) + 1 : order.index(node)]
            visible = mutates(node) and mover.target != ATEN.max_pool2d.default
            if visible or len(mover.users) > 1 or len(values.users) > 1 or any(map(mutates, between)):
                break
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
            node.replace_all_uses_with(mover)
            node.replace_input_with(mover, values)
            mover.replace_input_with(values, node)
            mover.prepend(node)


def _clip_float_input(layer: fx.Node) -> None:
    """Clip the input of a layer that computes in floating point as the network does, without rounding; in place."""
    source = layer.args[0]
    if isinstance(source, fx.Node) and source.target == DEQUANTIZE:
        scale, zero, lowest, highest = source.args[1:5]
        ends = ((lowest - zero) * scale, (highest - zero) * scale)  # type: ignore[operator]
        (values,) = source.all_input_nodes[0].all_input_nodes
        with layer.graph.inserting_before(layer):
            clipped = layer.graph.call_function(ATEN.clamp.default, (values, *ends))
        layer.replace_input_with(source, clipped)


def movers(*, mixed: bool) -> set[Any]:
    """Return the operators whose output lies on the grid of their input; XNNPACK takes parts of floats."""
    return _MOVERS | _PARTS if mixed else _MOVERS


def _reader(node: fx.Node) -> fx.Node:
    return next(iter(node.users))


def _is_integer(layer: fx.Node) -> bool:
    """Return whether the weight and the input of a layer are both integers."""
    if layer.target not in INTEGER_LAYERS:
        return False
    source, weight = layer.args[:2]
    packed = isinstance(weight, fx.Node) and weight.target == DEQUANTIZE_WEIGHT
    return packed and isinstance(source, fx.Node) and on_grid(source, mixed=False)


def on_grid(node: fx.Node, *, mixed: bool) -> bool:
    """Return whether the output of a node lies on a grid, that is, whether integers hold it."""
    return _before_movers(node, mixed=mixed).target == DEQUANTIZE


def _before_movers(node: fx.Node, *, mixed: bool) -> fx.Node:
    while node.target in movers(mixed=mixed):
        node = node.all_input_nodes[0]
    return node


def _isolate_float_layer(layer: fx.Node) -> None:
    """Insert operators that change nothing before and after a layer, in place.

    The one after the layer prevents the converter from fusing the layer with a quantizer. The one before prevents it
    from folding the scales of a norm into the weight, which would no longer consist of few integers.
    """
    source, weight = layer.args[:2]
    packed = isinstance(weight, fx.Node) and weight.target == DEQUANTIZE_WEIGHT
    if packed and isinstance(source, fx.Node) and not on_grid(source, mixed=True):
        with layer.graph.inserting_before(layer):
            barrier = layer.graph.call_function(ATEN.clamp_min.default, (source, NO_LOWER_BOUND))
        layer.replace_input_with(source, barrier)
    last = _last_clamp(layer)
    for quantizer in [user for user in last.users if user.target == QUANTIZE]:
        lowest, _ = Grid.of(quantizer).ends
        with layer.graph.inserting_before(quantizer):
            quantizer.replace_input_with(last, layer.graph.call_function(ATEN.clamp_min.default, (last, lowest)))


def _round_outputs(
    graph_module: fx.GraphModule, examples: Sequence[tuple[Tensor, ...]], integer: set[fx.Node], *, mixed: bool
) -> None:
    """Round the output of every operator that computes with integers, each tensor on one grid; in place."""
    observer = RangeObserver(graph_module)
    with torch.no_grad():
        for one in examples:
            observer.run(*one)
    for node in list(graph_module.graph.nodes):
        if _has_one_grid(node) and _only_floats_read(node):
            for part in node.all_input_nodes if mixed else ():
                if on_grid(part, mixed=mixed):  # the converter would compute with its codes
                    isolate(node, part)
            continue
        if (
            not mixed
            and node.target in _INTEGER_OPERATORS
            and any(on_grid(one, mixed=mixed) for one in node.all_input_nodes)
        ):
            for source in node.all_input_nodes:  # kernels read integers at all inputs or at none
                if not on_grid(source, mixed=mixed):
                    _round(graph_module.graph, source, observer.ranges, mixed=mixed)
        is_integer = (
            node in integer
            or (node.target in _INTEGER_OPERATORS and all(on_grid(one, mixed=mixed) for one in node.all_input_nodes))
            or (node.op == "placeholder" and any(user.target == QUANTIZE for user in node.users))
        )
        if is_integer:
            _round(graph_module.graph, _last_clamp(node), observer.ranges, mixed=mixed)


def isolate(reader: fx.Node, source: fx.Node) -> None:
    """Insert a factor of almost one, beyond which the converter of LiteRT gives neither the grid of the other."""
    with reader.graph.inserting_before(reader):
        reader.replace_input_with(source, reader.graph.call_function(ATEN.mul.Tensor, (source, ALMOST_ONE)))


def _has_one_grid(node: fx.Node) -> bool:
    """Return whether integer kernels have one grid for inputs and output: concatenations and averages of windows."""
    if node.target == ATEN.adaptive_avg_pool2d.default:
        return set(node.args[1]) != {1}  # type: ignore[arg-type]
    return node.target in {ATEN.avg_pool2d.default, ATEN.cat.default}


def _only_floats_read(node: fx.Node) -> bool:
    """Return whether all readers of a tensor compute in floating point, also of what is moved or clamped of it."""
    moved, integers = {*_MOVERS, *_PARTS, *_FUSED_CLAMPS}, {QUANTIZE, "output", *_INTEGER_OPERATORS}
    return all(
        _only_floats_read(one) if one.target in moved or _has_one_grid(one) else one.target not in integers
        for one in node.users
    )


def _last_clamp(node: fx.Node) -> fx.Node:
    """Return the last of the clamps after a node that its kernel fuses; the node itself if there are none."""
    while len(node.users) == 1 and _reader(node).target in _FUSED_CLAMPS:
        node = _reader(node)
    return node


def _round(graph: fx.Graph, root: fx.Node, ranges: dict[str, tuple[float, float]], *, mixed: bool) -> None:
    """Quantize a tensor and all tensors that are moved from it on one grid, instead of the quantizers they have.

    A quantizer that clips values of the wider grid, on which others read them, stays and follows that grid.
    """
    members = [root]
    old: list[fx.Node] = []
    others: list[fx.Node] = []
    for member in members:
        for user in member.users:
            (old if user.target == QUANTIZE else members if user.target in movers(mixed=mixed) else others).append(user)
    kept = _kept_grid(root, mixed=mixed)
    grid = kept or _common_grid(root, old, others, ranges)
    clipping = [one for one in old if Grid.of(one).is_narrower(grid) or (kept and Grid.of(one) != grid)]
    for quantizer in clipping if mixed else ():  # the converter would merge both quantizers
        isolate(quantizer, quantizer.all_input_nodes[0])
    for quantizer in [one for one in old if one not in clipping]:
        for dequantizer in list(quantizer.users):
            dequantizer.replace_all_uses_with(quantizer.all_input_nodes[0])
            graph.erase_node(dequantizer)
        graph.erase_node(quantizer)
    for member in (one for one in members if one.target not in _SPLITS):
        readers = list(member.users)
        with graph.inserting_after(member):
            codes = graph.call_function(QUANTIZE, (member, *grid))
        with graph.inserting_after(codes):
            values = graph.call_function(DEQUANTIZE, (codes, *grid))
        for reader in readers:
            reader.replace_input_with(member, values)


def _common_grid(
    root: fx.Node, quantizers: list[fx.Node], others: list[fx.Node], ranges: dict[str, tuple[float, float]]
) -> Grid:
    """Return the grid of a tensor that these quantizers and others read."""
    grids = {Grid.of(quantizer) for quantizer in quantizers}
    if len(grids) == 1 and not others:
        return grids.pop()
    # kernels do not add terms whose grid is much finer than that of the sum
    sums = [tuple(end / SCALE_RATIO for end in ranges[user.name]) for user in others if user.target in ADDITIONS]
    lows, highs = zip(ranges[root.name], *sums, *(found.ends for found in grids), strict=True)
    return Grid.over(min(lows), max(highs))


def _kept_grid(node: fx.Node, *, mixed: bool) -> Grid | None:
    """Return the grid of the inputs of an operator, maybe clamped, whose output lies on it, if there is one.

    That is an average of a window, or a concatenation of tensors that all lie on one grid.
    """
    while node.target in _FUSED_CLAMPS:
        node = node.all_input_nodes[0]
    if not _has_one_grid(node):
        return None
    sources = [_before_movers(one, mixed=mixed) for one in node.all_input_nodes]
    grids = {Grid.of(one) if one.target == DEQUANTIZE else None for one in sources}
    return grids.pop() if len(grids) == 1 else None
