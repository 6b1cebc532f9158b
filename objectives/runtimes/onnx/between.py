"""What is between the layers and the quantizers of an ONNX graph, and keeps ONNX Runtime from fusing them.

Import this module only where the ``onnx`` extra is installed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from objectives.runtimes.onnx.graph import Graph

# Operators across which ONNX Runtime moves quantizers, since they change no value.
TRANSPARENT_OPS = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
# Operators that ONNX Runtime ignores before quantizers.
CLAMP_OPS = {"Clip", "Relu"}


def simplify(graph: Graph) -> None:
    """Remove what keeps layers and quantizers apart, and changes no output."""
    for node in graph.proto.node:
        if node.op_type == "Pad":
            _merge_padding(graph, node)
    graph.drop_unused()
    for node in graph.proto.node:
        if node.op_type == "GatherND":
            _simplify_gather(graph, node)
        elif node.op_type == "QuantizeLinear":
            _drop_covered_clamp(graph, node)
            _drop_repeated(graph, node)
    graph.drop_unused()


def _simplify_gather(graph: Graph, node: NodeProto) -> None:
    """Replace the Unsqueeze and GatherND that the exporter writes for ``table[codes]`` by one Gather."""
    table, index = graph.constants.get(node.input[0]), graph.producer(node.input[1])
    if table is not None and table.ndim == 1 and index is not None and index.op_type == "Unsqueeze":
        node.CopyFrom(helper.make_node("Gather", [node.input[0], index.input[0]], list(node.output)))


def _merge_padding(graph: Graph, pad: NodeProto) -> None:
    """Let a convolution pad its quantized input itself, since the same zeros before the quantizer keep kernels apart.

    ONNX Runtime fuses a convolution with a quantizer that follows it, but not across a Pad.
    """
    readers: list[NodeProto] = []
    for _ in range(3):
        reader = graph.only_reader(readers[-1].output[0] if readers else pad.output[0])
        if reader is None:
            return
        readers.append(reader)
    conv = readers[2]
    if [node.op_type for node in readers] != ["QuantizeLinear", "DequantizeLinear", "Conv"] or conv.input[0] not in (
        readers[1].output
    ):
        return
    values = {item.name: helper.get_attribute_value(item) for item in (*pad.attribute, *conv.attribute)}
    amounts = graph.constants.get(pad.input[1])
    zero = len(pad.input) < 3 or not pad.input[2] or graph.constants.get(pad.input[2], np.ones(1)).item() == 0  # noqa: PLR2004
    axes = len(pad.input) > 3 and pad.input[3]  # noqa: PLR2004
    plain = values.get("mode", b"constant") == b"constant" and values.get("auto_pad", b"NOTSET") == b"NOTSET"
    if amounts is None or not zero or axes or not plain:
        return
    before, after = np.split(amounts, 2)
    if before[:2].any() or after[:2].any() or amounts.min() < 0:  # of the batch or the channels, or cropping
        return
    merged = np.concatenate([before[2:], after[2:]]) + values.get("pads", 0)
    kept = [item for item in conv.attribute if item.name != "pads"]
    del conv.attribute[:]
    conv.attribute.extend([*kept, helper.make_attribute("pads", list(map(int, merged)))])
    graph.replace(pad.output[0], pad.input[0])


def quantizer(graph: Graph, quantize: NodeProto) -> tuple[float, float, float]:
    """Return scale, zero point and largest code of a quantizer, both counted from its lowest code.

    The largest code is that of a Clip if one follows.
    """
    limit = graph.only_reader(quantize.output[0])
    largest = graph.scalar(limit.input[2]) if limit is not None and limit.op_type == "Clip" else 255.0
    lowest = np.iinfo(graph.constants[quantize.input[2]].dtype).min
    return graph.scalar(quantize.input[1]), graph.scalar(quantize.input[2]) - lowest, largest


def _drop_covered_clamp(graph: Graph, quantize: NodeProto) -> None:
    """Drop a ReLU or ReLU6 before a quantizer that saturates at the same range or at a smaller one."""
    clamp = graph.source(quantize.input[0], TRANSPARENT_OPS)
    if clamp is None or clamp.op_type not in CLAMP_OPS or graph.sink(clamp.output[0], TRANSPARENT_OPS) is not quantize:
        return
    low, high = (0.0, np.inf) if clamp.op_type == "Relu" else (-np.inf, np.inf)
    if len(clamp.input) > 1 and clamp.input[1]:
        low = graph.scalar(clamp.input[1])
    if len(clamp.input) > 2 and clamp.input[2]:  # noqa: PLR2004 - value, low, high
        high = graph.scalar(clamp.input[2])
    scale, zero_point, largest = quantizer(graph, quantize)
    if np.rint(low / scale) + zero_point <= 0 and np.rint(high / scale) + zero_point >= largest:
        graph.replace(clamp.output[0], clamp.input[0])


def _drop_repeated(graph: Graph, quantize: NodeProto) -> None:
    """Drop a quantizer of codes that are on its grid already, as those that a file takes may be."""
    before = graph.producer(quantize.input[0])
    if before is None or before.op_type != "DequantizeLinear":
        return
    pairs = zip(before.input[1:], quantize.input[1:], strict=True)
    if all(
        one in graph.constants and other in graph.constants and _is_same(graph.constants[one], graph.constants[other])
        for one, other in pairs
    ):
        graph.replace(quantize.output[0], before.input[0])


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)
