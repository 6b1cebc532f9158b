"""Pack the integer weights of an exported ONNX graph, in the form that ONNX Runtime executes well.

Import it only where the ``onnx`` extra is known to be there.

Legend: ``codes`` are the integers of a weight, ``O`` its output channels, a ``unit`` is what one step of an integer
accumulator is worth.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from objectives.runtimes.file_layout import joined
from objectives.runtimes.onnx.graph import Graph, store, strip

Codes = NDArray[np.int8] | NDArray[np.uint8]

# What rounding the bias to integers may change, as a share of the output's range; beyond it, floating point is used.
_BIAS_TOLERANCE = 2**-15
# uint8 times at most this, twice, stays within 16 bits: x86 without VNNI cannot saturate.
_SAFE_CODE = 64
# What ONNX Runtime moves quantizers across, since it changes no value; it also ignores clamps in front of quantizers.
_MOVES = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
_CLAMPS = {"Clip", "Relu"}
# The layers whose floating-point weights it may round.
_ROUNDED = {"Conv", "ConvTranspose", "Gemm"}
_UNSIGNED = ((TensorProto.UINT2, 2), (TensorProto.UINT4, 4))
_SIGNED = ((TensorProto.INT2, 2), (TensorProto.INT4, 4))


def pack(exported: ModelProto) -> ModelProto:
    """Return ``exported`` with packed weights and without all that execution does not need.

    Parameters
    ----------
    exported
        A graph with one input and one output whose integer weights are INT8 or UINT8 initializers.

    Returns
    -------
    ModelProto
        A new model with input ``x``, output ``y`` and batch dimension ``N``.
    """
    model = ModelProto()
    model.CopyFrom(exported)
    graph = Graph(model.graph)
    for node in model.graph.node:
        if node.op_type == "GatherND":
            _simplify_gather(graph, node)
        elif node.op_type == "QuantizeLinear":
            _drop_covered_clamp(graph, node)
    graph.drop_unused()
    for node in list(model.graph.node):
        codes = graph.constants.get(node.input[0]) if node.input else None
        if codes is None or codes.dtype not in (np.int8, np.uint8) or len(graph.readers(node.input[0])) > 1:
            continue
        if node.op_type == "DequantizeLinear":
            _pack_uniform(graph, node, codes)
        elif node.op_type == "Cast":
            _store_codes(graph, node.input[0], codes)
    for node in list(model.graph.node):
        if node.op_type == "QuantizeLinear":
            _guard_float_weight(graph, node)
    strip(model)
    return model


def needs_two_bits(codes: Codes) -> bool:
    """Tell whether ``codes`` fit a type of two bits, which the file can only have from opset 25."""
    return codes.size > 0 and _narrowest(codes)[1] == 2  # noqa: PLR2004 - two bits are two bits


def _narrowest(codes: Codes) -> tuple[int, int]:
    """Return the ONNX type that holds ``codes``, and its width; the lowest signed number is not used."""
    signed = codes.dtype == np.int8
    largest = int(np.abs(codes.astype(np.int16)).max())
    for kind, bits in _SIGNED if signed else _UNSIGNED:
        if largest < 2 ** (bits - signed):
            return kind, bits
    return (TensorProto.INT8 if signed else TensorProto.UINT8), 8


def _store_codes(graph: Graph, name: str, codes: Codes) -> bool:
    """Store ``codes`` in the narrowest type, the first of a byte in its lowest bits; tell if that is below 8."""
    kind, bits = _narrowest(codes)
    store(graph, name, kind, codes.shape, joined(codes, bits).tobytes())
    return bits < 8  # noqa: PLR2004 - a byte


def _simplify_gather(graph: Graph, node: NodeProto) -> None:
    """Write ``table[codes]`` as Gather: the exporter writes Unsqueeze and GatherND."""
    table, index = graph.constants.get(node.input[0]), graph.producer(node.input[1])
    if table is not None and table.ndim == 1 and index is not None and index.op_type == "Unsqueeze":
        node.CopyFrom(helper.make_node("Gather", [node.input[0], index.input[0]], list(node.output)))


def _quantizer(graph: Graph, quantize: NodeProto) -> tuple[float, float, float]:
    """Return scale, zero point and largest code of a quantizer and the Clip that may follow it."""
    limit = graph.only_reader(quantize.output[0])
    largest = graph.scalar(limit.input[2]) if limit is not None and limit.op_type == "Clip" else 255.0
    return graph.scalar(quantize.input[1]), graph.scalar(quantize.input[2]), largest


def _drop_covered_clamp(graph: Graph, quantize: NodeProto) -> None:
    """Drop a ReLU or ReLU6 before a quantizer that saturates at the same range or a tighter one."""
    clamp = graph.source(quantize.input[0], _MOVES)
    if clamp is None or clamp.op_type not in _CLAMPS or graph.sink(clamp.output[0], _MOVES) is not quantize:
        return
    low, high = (0.0, np.inf) if clamp.op_type == "Relu" else (-np.inf, np.inf)
    if len(clamp.input) > 1 and clamp.input[1]:
        low = graph.scalar(clamp.input[1])
    if len(clamp.input) > 2 and clamp.input[2]:  # noqa: PLR2004 - value, low, high
        high = graph.scalar(clamp.input[2])
    scale, zero_point, largest = _quantizer(graph, quantize)
    if np.rint(low / scale) + zero_point <= 0 and np.rint(high / scale) + zero_point >= largest:
        graph.replace(clamp.output[0], clamp.input[0])


def _pack_uniform(graph: Graph, dequantize: NodeProto, codes: Codes) -> None:
    """Pack the weight behind ``dequantize``, in a form that is prepared once, while the file is loaded.

    A DequantizeLinear that no integer kernel absorbs runs again at every inference (1.5 times the time of three
    64-channel convolutions), whereas Cast and Mul are folded. So the form depends on who reads the weight:

    - integer kernels, which know no INT4: Cast to INT8, Mul by a factor if one is needed, DequantizeLinear;
    - anything else: Cast to FLOAT, Mul.
    """
    name, scale_name = dequantize.input[:2]
    scale_O = graph.constants[scale_name]
    axis = next((item.i for item in dequantize.attribute if item.name == "axis"), 1)
    if any(graph.constants[zero_point].any() for zero_point in dequantize.input[2:]):
        return  # an asymmetric weight stays as it was exported
    factor = _integer_factor(graph, dequantize, codes)
    outputs = list(dequantize.output)
    if factor is None:
        _store_codes(graph, name, codes)
        shape = [-1 if dimension == axis else 1 for dimension in range(codes.ndim)]
        scale_name = graph.add_constant(scale_O.reshape(shape if scale_O.ndim else ()))
        floating = graph.insert_before(dequantize, "Cast", [name], to=TensorProto.FLOAT)
        dequantize.CopyFrom(helper.make_node("Mul", [floating, scale_name], outputs))
        return
    if factor > 1:
        scale_name = graph.add_constant(scale_O / np.float32(factor))
    if _narrowest(codes)[1] == 8:  # noqa: PLR2004 - a byte each: the factor can go into the codes
        _store_codes(graph, name, codes * np.int8(factor))
    else:
        _store_codes(graph, name, codes)
        name = graph.insert_before(dequantize, "Cast", [name], to=TensorProto.INT8)
        if factor > 1:
            multiplier = graph.add_constant(np.array(factor, np.int8))
            name = graph.insert_before(dequantize, "Mul", [name, multiplier])
    dequantize.CopyFrom(helper.make_node("DequantizeLinear", [name, scale_name], outputs, axis=axis))


def _integer_factor(graph: Graph, dequantize: NodeProto, codes: Codes) -> int | None:
    """Return what to multiply ``codes`` by for an integer kernel, or None where floating point is right.

    ONNX Runtime rounds the bias of an integer kernel to multiples of (input scale) x (weight scale). With few bits
    that unit is coarse, and the file would not compute what was trained. Codes that are larger by a power of two,
    with scales that are smaller by it, are the same weights in a finer unit.
    """
    layer = graph.only_reader(dequantize.output[0])
    if layer is None or layer.op_type != "Conv":
        return None  # ONNX Runtime 1.32 has integer kernels for Gemm, but does not choose them
    feed, quantize = graph.source(layer.input[0], _MOVES), graph.sink(layer.output[0], _MOVES)
    if feed is None or feed.op_type != "DequantizeLinear" or quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    input_scale, (output_scale, _, levels) = graph.scalar(feed.input[1]), _quantizer(graph, quantize)
    bias = graph.constants.get(layer.input[2]) if len(layer.input) > 2 else np.zeros(1)  # noqa: PLR2004
    largest = max(int(np.abs(codes.astype(np.int16)).max()), 1)
    for factor in (1, 2 ** max(int(np.log2(_SAFE_CODE / largest)), 0)):
        unit_O = input_scale * graph.constants[dequantize.input[1]].astype(np.float64) / factor
        if bias is not None and np.all(_rounding(bias, unit_O) <= _BIAS_TOLERANCE * output_scale * levels):
            return factor
    return None


def _rounding(bias: NDArray[Any], unit_O: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what storing ``bias`` as 32-bit multiples of ``unit_O`` changes, as absolute values."""
    limits = np.iinfo(np.int32)
    with np.errstate(all="ignore"):  # the scale of a channel of zeros may be zero: the result is not a number then
        stored = np.clip(np.rint(bias / unit_O), limits.min, limits.max) * unit_O
    return np.asarray(np.abs(stored - bias))


def _guard_float_weight(graph: Graph, quantize: NodeProto) -> None:
    """Keep ONNX Runtime from rounding the weight of a floating-point layer between two quantizers.

    Its optimizer WeightBiasQuantization takes a layer whose input is dequantized and whose output is quantized, with at
    most Relu or Clip between, for one that should be integer, and rounds its weight to 8 bits with one scale for all
    channels (16 instead of 290 dB on three convolutions). A Max at the quantizer's lower end changes nothing else.
    """
    layer = graph.source(quantize.input[0], _MOVES | _CLAMPS)
    if layer is None or layer.op_type not in _ROUNDED:
        return
    feed, weight = graph.source(layer.input[0], _MOVES), graph.producer(layer.input[1])
    dequantized = [node is not None and node.op_type == "DequantizeLinear" for node in (feed, weight)]
    if dequantized == [True, False]:
        scale, zero_point, _ = _quantizer(graph, quantize)
        lowest = graph.add_constant(np.array(-zero_point * scale, np.float32))
        quantize.input[0] = graph.insert_before(quantize, "Max", [quantize.input[0], lowest])
