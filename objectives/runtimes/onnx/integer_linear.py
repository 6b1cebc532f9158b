"""Linear layers of an ONNX graph whose inputs and weights are integers, for the integer kernel of ONNX Runtime.

ONNX Runtime has integer kernels for quantized linear layers, but chooses them only where the output is quantized too.
Its own operator MatMulIntegerToFloat is such a kernel with an output of floating point: exact sums, one scale for each
output. It takes 0.5 to 0.75 of the time of the layer in floating point from about 128 inputs on, and as long as that
with fewer (AMD EPYC without VNNI, one thread).

Import this module only where the ``onnx`` extra is installed.

Legend: ``I`` inputs, ``O`` outputs.
"""

import numpy as np
from onnx import ModelProto, NodeProto, helper

from objectives.runtimes.onnx.graph import Graph, whole_number

DOMAIN = "com.microsoft"  # of the operators that only ONNX Runtime has
_PLAIN_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}


def integer_reader(graph: Graph, dequantize: NodeProto) -> NodeProto | None:
    """Return the linear layer that reads a dequantized weight of shape (O, I), if its inputs are integers too.

    The weight is one of signed codes, without a zero point.
    """
    weight, scale = (graph.constants[name] for name in dequantize.input[:2])
    by_output = not scale.ndim or whole_number(dequantize, "axis", 1) == 0
    if weight.dtype != np.int8 or weight.ndim != 2 or not by_output:  # noqa: PLR2004 - outputs, inputs
        return None
    value, layer = dequantize.output[0], graph.only_reader(dequantize.output[0])
    transposed = layer is not None and layer.op_type == "Transpose"
    if layer is not None and transposed:
        value, layer = layer.output[0], graph.only_reader(layer.output[0])
    if layer is None or layer.op_type != ("MatMul" if transposed else "Gemm") or layer.input[1] != value:
        return None
    if not transposed and _PLAIN_GEMM | {item.name: helper.get_attribute_value(item) for item in layer.attribute} != (
        _PLAIN_GEMM
    ):
        return None
    before = graph.producer(layer.input[0])
    if before is None or before.op_type != "DequantizeLinear" or len(before.input) < 3:  # noqa: PLR2004 - a zero point
        return None
    zero = graph.constants.get(before.input[2])
    return layer if zero is not None and zero.dtype == np.uint8 and not zero.ndim else None


def multiply_integers(graph: Graph, layer: NodeProto, weight: str, scale: str, middle: int) -> None:
    """Let a layer multiply integers.

    Parameters
    ----------
    graph
        The graph, which is changed in place.
    layer
        A layer that `integer_reader` has found.
    weight
        Name of the codes of its weight as bytes, shape (I, O).
    scale
        Name of the scales of the weight, shape (O,) or ().
    middle
        The code of zero.
    """
    dequantize = graph.producer(layer.input[0])
    assert dequantize is not None
    codes, input_scale, input_zero = dequantize.input
    zero = graph.add_constant(np.array(middle, np.uint8))
    bias, output = list(layer.input[2:]), layer.output[0]
    added = graph.only_reader(output)
    if not bias and added is not None and added.op_type == "Add":
        bias = [name for name in added.input if name in graph.constants and graph.constants[name].ndim == 1]
        if bias:  # the exporter adds it to a product of more than two dimensions
            output = added.output[0]
            graph.proto.node.remove(added)
    inputs = [codes, weight, input_scale, scale, input_zero, zero, *bias]
    layer.CopyFrom(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain=DOMAIN))


def name_domain(model: ModelProto) -> None:
    """Let the model say that it needs the operators of ONNX Runtime, if it does."""
    if any(node.domain == DOMAIN for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
