"""Packing of the integer weights of an exported ONNX graph, in a form that ONNX Runtime executes fast.

Import this module only where the ``onnx`` extra is installed.

Legend: ``codes`` are the integers of a weight, ``O`` its output channels; a ``unit`` is the value of one step of an
integer accumulator.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from objectives.runtimes.file_layout import pack_bits
from objectives.runtimes.onnx.between import CLAMP_OPS, TRANSPARENT_OPS, quantizer, simplify
from objectives.runtimes.onnx.graph import Graph, store, strip, whole_number
from objectives.runtimes.onnx.integer_linear import integer_reader, multiply_integers, name_domain

Codes = NDArray[np.int8] | NDArray[np.uint8]

# Largest change of a bias by rounding it to integers, as a share of the output range and for each level of the output:
# a sixteenth of a step of 8 bits, less of fewer bits, since an output that moves to the neighbouring level then changes
# more (chosen); above it, a layer stays in floating point.
_BIAS_TOLERANCE = 2**-20
# Largest bias in units of an integer accumulator: half of the range, so that sums fit too.
_MOST_BIAS = 2.0**30
_MOST_CODE = 255  # of an input
# Channels of a group from which integer kernels are as fast as those of floating point, unless each has one channel:
# groups of 2 of 480 (14 x 14) take 4.0 ms instead of 0.38, groups of 8 0.57 and 0.49, of 16 0.33 and 0.31 (AMD EPYC).
_LEAST_IN_GROUP = 16
TWO_BITS_OPSET = 25  # first ONNX opset with 2-bit integers
# Largest code for which the sum of two products with uint8 fits 16 bits, so that x86 without VNNI cannot saturate.
_SAFE_CODE = 64
# Layers whose floating-point weights ONNX Runtime may round: see `_guard_float_weight`.
_UNGUARDED_LAYERS = {"Conv", "ConvTranspose", "Gemm"}
# ONNX types of fewer than 8 bits with their bits, ascending.
_UNSIGNED_TYPES = ((TensorProto.UINT2, 2), (TensorProto.UINT4, 4))
_SIGNED_TYPES = ((TensorProto.INT2, 2), (TensorProto.INT4, 4))


def pack(exported: ModelProto, least_bits: int, *, own_operators: bool = True) -> ModelProto:
    """Return ``exported`` with packed weights and without all that execution does not need.

    Parameters
    ----------
    exported
        A graph with one input and one output whose integer weights are INT8 or UINT8 initializers.
    least_bits
        Bits of the narrowest integer type that the runtime reads: 2, 4 or 8.
    own_operators
        Whether the runtime has the operators of ONNX Runtime.

    Returns
    -------
    ModelProto
        A new model with input ``x``, output ``y`` and batch dimension ``N``.
    """
    model = ModelProto()
    model.CopyFrom(exported)
    graph = Graph(model.graph)
    simplify(graph)
    if model.opset_import[0].version < TWO_BITS_OPSET:  # codes may shrink while they are packed
        least_bits = max(least_bits, 4)
    for node in list(model.graph.node):
        codes = graph.constants.get(node.input[0]) if node.input else None
        if codes is None or codes.dtype not in (np.int8, np.uint8) or len(graph.readers(node.input[0])) > 1:
            continue
        if node.op_type == "DequantizeLinear":
            if any(graph.constants[zero_point].any() for zero_point in node.input[2:]):
                continue  # an asymmetric weight is kept as it was exported
            linear = integer_reader(graph, node) if own_operators else None
            if linear is not None:
                _pack_product(graph, linear, node, codes, least_bits)
            else:
                _pack_uniform(graph, node, codes, least_bits)
        elif node.op_type == "Cast":
            _store_codes(graph, node.input[0], codes, least_bits)
    for node in list(model.graph.node):
        if node.op_type == "QuantizeLinear":
            _guard_float_weight(graph, node)
    strip(model)
    name_domain(model)
    return model


def needs_two_bits(codes: Codes) -> bool:
    """Return whether ``codes`` fit a type of two bits, which needs opset 25."""
    return codes.size > 0 and _narrowest(codes, 2)[1] == 2  # noqa: PLR2004 - the bits in the name


def _narrowest(codes: Codes, least_bits: int) -> tuple[int, int]:
    """Return the narrowest ONNX type that holds ``codes``, and its bits; the lowest signed number is not used."""
    signed = codes.dtype == np.int8
    largest = int(np.abs(codes.astype(np.int16)).max())
    for kind, bits in _SIGNED_TYPES if signed else _UNSIGNED_TYPES:
        if bits >= least_bits and largest < 2 ** (bits - signed):
            return kind, bits
    return (TensorProto.INT8 if signed else TensorProto.UINT8), 8


def _store_codes(graph: Graph, name: str, codes: Codes, least_bits: int) -> None:
    """Store ``codes`` in the narrowest type."""
    kind, bits = _narrowest(codes, least_bits)
    store(graph, name, kind, codes.shape, pack_bits(codes, bits).tobytes())


def _pack_uniform(graph: Graph, dequantize: NodeProto, codes: Codes, least_bits: int) -> None:
    """Pack the weight that ``dequantize`` reads, in a form that ONNX Runtime unpacks once, when it loads the file.

    A DequantizeLinear that is not fused into an integer kernel runs at every inference (1.5 times the time of three
    64-channel convolutions), whereas Cast and Mul are folded. The form therefore depends on what reads the weight:

    - an integer kernel, which has no INT4: Cast to INT8, Mul by a factor if one is needed, DequantizeLinear;
    - anything else: Cast to FLOAT, Mul.
    """
    name, scale_name = dequantize.input[:2]
    scale_O = graph.constants[scale_name]
    axis = whole_number(dequantize, "axis", 1)
    outputs = list(dequantize.output)
    kernel = _integer_form(graph, dequantize, codes, axis)
    if kernel is None:
        _store_codes(graph, name, codes, least_bits)
        shape = [-1 if dimension == axis else 1 for dimension in range(codes.ndim)]
        scale_name = graph.add_constant(scale_O.reshape(shape if scale_O.ndim else ()))
        floating = graph.insert_before(dequantize, "Cast", [name], to=TensorProto.FLOAT)
        dequantize.CopyFrom(helper.make_node("Mul", [floating, scale_name], outputs))
        return
    codes, scale_O, factor = kernel
    if factor > 1 or scale_O is not graph.constants[scale_name]:
        scale_name = graph.add_constant(scale_O / np.float32(factor))
    if _narrowest(codes, least_bits)[1] == 8:  # noqa: PLR2004 - codes of a byte can be multiplied by the factor here
        _store_codes(graph, name, codes * np.int8(factor), least_bits)
    else:
        _store_codes(graph, name, codes, least_bits)
        name = graph.insert_before(dequantize, "Cast", [name], to=TensorProto.INT8)
        if factor > 1:
            multiplier = graph.add_constant(np.array(factor, np.int8))
            name = graph.insert_before(dequantize, "Mul", [name, multiplier])
    dequantize.CopyFrom(helper.make_node("DequantizeLinear", [name, scale_name], outputs, axis=axis))


def _pack_product(graph: Graph, linear: NodeProto, dequantize: NodeProto, codes: Codes, least_bits: int) -> None:
    """Pack the weight of a linear layer that multiplies integers, shape (O, I), as unsigned codes of shape (I, O).

    ONNX Runtime unpacks them once, when it loads the file. They are unsigned since x86 processors without VNNI saturate
    sums of products of uint8 and int8.
    """
    name, bits = dequantize.input[0], _narrowest(codes, least_bits)[1]
    middle = 2 ** (bits - 1)
    _store_codes(graph, name, np.ascontiguousarray(codes.T + np.int16(middle)).astype(np.uint8), bits)
    if bits < 8:  # noqa: PLR2004 - bits of a byte
        name = graph.insert_before(dequantize, "Cast", [name], to=TensorProto.UINT8)
    multiply_integers(graph, linear, name, dequantize.input[1], middle)


def _integer_form(
    graph: Graph, dequantize: NodeProto, codes: Codes, axis: int
) -> tuple[Codes, NDArray[np.float32], int] | None:
    """Return codes, scales and a factor of the codes for an integer kernel, or None if floating point is better.

    ONNX Runtime rounds the bias of an integer kernel to multiples of (input scale) x (weight scale). With few bits,
    this unit is coarse, and the file would not compute what was trained. Codes multiplied by a power of two, with
    scales divided by it, are the same weights with a finer unit. In a channel whose weights are almost zero it is too
    fine, so that the bias would not fit into 32 bits: the channel gets a larger scale.
    """
    layer = graph.only_reader(dequantize.output[0])
    if layer is None or layer.op_type != "Conv":
        return None
    groups = whole_number(layer, "group", 1)
    channels = codes.shape[1], len(codes) // groups  # of a group: taken and returned
    if groups > 1 and max(channels) > 1 and min(channels) < _LEAST_IN_GROUP:
        return None
    before, after = graph.source(layer.input[0], TRANSPARENT_OPS), graph.sink(layer.output[0], TRANSPARENT_OPS)
    if before is None or before.op_type != "DequantizeLinear" or after is None or after.op_type != "QuantizeLinear":
        return None
    input_scale, (output_scale, _, levels) = graph.scalar(before.input[1]), quantizer(graph, after)
    bias = graph.constants.get(layer.input[2]) if len(layer.input) > 2 else np.zeros(1, np.float32)  # noqa: PLR2004
    if bias is None:
        return None
    exported_O = graph.constants[dequantize.input[1]]
    largest = max(int(np.abs(codes.astype(np.int16)).max()), 1)
    for factor in (1, 2 ** max(int(np.log2(_SAFE_CODE / largest)), 0)):
        least_O = factor * np.abs(bias) / (input_scale * _MOST_BIAS)
        wider, scale_O = _widened(codes, exported_O, axis, least_O)
        unit_O = input_scale * scale_O.astype(np.float64) / factor
        error_O = _rounding_error(bias, unit_O)
        if wider is not codes:
            error_O += input_scale * _MOST_CODE * _weight_change(codes, exported_O, wider, scale_O, axis)
        if np.all(error_O <= _BIAS_TOLERANCE * levels * output_scale * levels):
            return wider, scale_O, factor
    return None


def _widened(
    codes: Codes, scale_O: NDArray[np.float32], axis: int, least_O: NDArray[Any]
) -> tuple[Codes, NDArray[np.float32]]:
    """Return codes for scales that are raised to the least ones."""
    if not scale_O.ndim or not np.any(scale_O < least_O):
        return codes, scale_O
    wider_O = np.maximum(scale_O, least_O).astype(np.float32)
    shape = [-1 if dimension == axis else 1 for dimension in range(codes.ndim)]
    return np.rint(codes * (scale_O / wider_O).reshape(shape)).astype(codes.dtype), wider_O


def _weight_change(
    codes: Codes, scale_O: NDArray[np.float32], others: Codes, other_O: NDArray[np.float32], axis: int
) -> NDArray[np.float64]:
    """Return the sum of the absolute differences of two weights in each output channel."""
    values, compared = (
        np.moveaxis(one, axis, 0).reshape(len(scale), -1) * scale[:, None].astype(np.float64)
        for one, scale in ((codes, scale_O), (others, other_O))
    )
    change_O: NDArray[np.float64] = np.abs(values - compared).sum(1)
    return change_O


def _rounding_error(bias: NDArray[Any], unit_O: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the absolute error of storing ``bias`` as 32-bit multiples of ``unit_O``."""
    limits = np.iinfo(np.int32)
    with np.errstate(all="ignore"):  # a channel of zeros may have a scale of zero, which gives NaN
        stored = np.clip(np.rint(bias / unit_O), limits.min, limits.max) * unit_O
    return np.asarray(np.abs(stored - bias))


def _guard_float_weight(graph: Graph, quantize: NodeProto) -> None:
    """Keep ONNX Runtime from rounding the weight of a floating-point layer between two quantizers.

    Its optimization WeightBiasQuantization treats a layer whose input is dequantized and whose output is quantized,
    with at most Relu or Clip between, as an integer layer, and rounds its weight to 8 bits with one scale for all
    channels (16 instead of 290 dB on three convolutions). A Max at the lower end of the quantizer's range prevents
    that and changes no output.
    """
    layer = graph.source(quantize.input[0], TRANSPARENT_OPS | CLAMP_OPS)
    if layer is None or layer.op_type not in _UNGUARDED_LAYERS:
        return
    before, weight = graph.source(layer.input[0], TRANSPARENT_OPS), graph.producer(layer.input[1])
    dequantized = [node is not None and node.op_type == "DequantizeLinear" for node in (before, weight)]
    if dequantized == [True, False]:
        scale, zero_point, _ = quantizer(graph, quantize)
        lowest = graph.add_constant(np.array(-zero_point * scale, np.float32))
        quantize.input[0] = graph.insert_before(quantize, "Max", [quantize.input[0], lowest])
