"""Convert a finished network to a LiteRT file whose weights take no more bits than they need.

Import it only where the ``litert`` extra is known to be there.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import litert_torch
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig

from objectives.runtimes.file_layout import joined
from objectives.runtimes.passes.flatbuffers import written_once
from objectives.runtimes.passes.integers import NOTHING_LESS, WEIGHT, constant, integer_graph, put_constant
from objectives.runtimes.runtime import ExportError, refused, silence

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

_ROUND = torch.ops.quantized_decomposed.quantize_per_channel.default
_IDENTIFIER = b"TFL3"
_ABSENT = -1  # an input that an operator may have and here has not
_ROUNDING = 2.0**-22  # relative: one product of two floats
_DEQUANTIZE_VERSION = 6  # the first that knows 4 bits
# the orders of a weight's dimensions in a file: convolutions, depthwise ones
_ORDERS = {4: ((0, 2, 3, 1), (1, 2, 3, 0))}
_UNPACKING = {schema.BuiltinOperator.DEQUANTIZE}
_KERNELS = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D,
            schema.BuiltinOperator.FULLY_CONNECTED}  # fmt: skip
# a type, its bits, and the operators that read it
_TYPES = ((schema.TensorType.INT2, 2, _UNPACKING), (schema.TensorType.INT4, 4, _UNPACKING | _KERNELS))


def converted(model: nn.Module, example: Tensor) -> bytes:
    """Return the bytes of the file; see `Runtime.export`."""
    with silence(), torch.no_grad():
        try:
            graph_module = integer_graph(model, example, floating=True)
            weights = _rounded_weights(graph_module)
            config = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
            # the configuration only says that the graph's own quantizers are to become integers
            converter = {"quant_config": QuantConfig(pt2e_quantizer=config)} if weights else {}
            edge = litert_torch.convert(graph_module, (example[:1].cpu(),), **converter)
            with tempfile.TemporaryDirectory() as folder:
                edge.export(str(Path(folder) / "model"))
                content = (Path(folder) / "model").read_bytes()
        except ExportError:
            raise
        except Exception as error:  # the converter raises whatever its parts do
            raise refused(model, "a LiteRT", error) from error
    return _packed(content, weights)


class Weight(NamedTuple):
    """An integer weight: its codes, and which axis has a scale each."""

    codes: np.ndarray
    axis: int


def _rounded_weights(graph_module: fx.GraphModule) -> list[Weight]:
    """Write every integer weight as a float that is rounded to it, the form that the converter knows; return them."""
    graph, found = graph_module.graph, []
    for node in [node for node in graph.nodes if node.target == WEIGHT]:
        codes, scale, zeros, axis, *ends = node.args
        integers, scales = constant(graph_module, codes), constant(graph_module, scale)
        shape = [-1 if dimension == axis else 1 for dimension in range(integers.dim())]
        with graph.inserting_before(node):
            copied = graph.create_node("get_attr", codes.target)
        values = integers * scales.reshape(shape)
        floats = put_constant(graph_module, copied, values)
        with graph.inserting_before(node):
            again = graph.call_function(_ROUND, (floats, scale, zeros, axis, *ends))
        node.args = (again, *node.args[1:])
        found.append(Weight(integers.numpy(), axis))
    graph_module.recompile()
    return found


def _packed(content: bytes, weights: list[Weight]) -> bytes:
    """Return the file with its weights at 2 or 4 bits where they fit, and without what no runtime reads."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    (graph,) = model.subgraphs
    _join(model)
    _own_buffers(model)
    _unfold(model, weights)
    users: dict[int, set[int]] = {}
    for node in graph.operators:
        code = model.operatorCodes[node.opcodeIndex].builtinCode
        for index in node.inputs:
            users.setdefault(index, set()).add(code)
    for index, tensor in enumerate(graph.tensors):
        if index not in {*graph.inputs, *graph.outputs}:
            tensor.name = b""
        data = model.buffers[tensor.buffer].data
        if data is None or tensor.type != schema.TensorType.INT8:
            continue
        codes = np.frombuffer(bytes(data), np.int8)
        for kind, bits, readers in _TYPES:
            if users.get(index, set()) <= readers and np.abs(codes.astype(np.int16)).max() < 2 ** (bits - 1):
                model.buffers[tensor.buffer].data = joined(codes, bits)
                tensor.type = kind
                break
    model.metadata = []
    model.description = b""
    _drop_empty(model)
    return written_once(model, _IDENTIFIER)  # each channel of weight and bias has 8 bytes of zero points, all 0


def _drop_empty(model: schema.ModelT) -> None:
    """Leave out buffers without data, all but the first, which stands for none, and scales where there are none."""
    (graph,) = model.subgraphs
    used = [0, *sorted({tensor.buffer for tensor in graph.tensors if model.buffers[tensor.buffer].data is not None})]
    for tensor in graph.tensors:
        tensor.buffer = used.index(tensor.buffer) if tensor.buffer in used else 0
        if tensor.quantization is not None and tensor.quantization.scale is None:
            tensor.quantization = None
        elif tensor.quantization is not None:
            tensor.quantization.zeroPoint = np.asarray(tensor.quantization.zeroPoint, np.int64)
    model.buffers = [model.buffers[at] for at in used]


def _join(model: schema.ModelT) -> None:
    """Leave out the operators that kept others apart while the file was made, and the tensors that nothing reads."""
    (graph,) = model.subgraphs
    maxima = {at for at, code in enumerate(model.operatorCodes) if code.builtinCode == schema.BuiltinOperator.MAXIMUM}
    same: dict[int, int] = {}
    for node in graph.operators:
        if node.opcodeIndex in maxima and _numbers(model, node.inputs[1]) == {float(np.float32(NOTHING_LESS))}:
            same[node.outputs[0]] = node.inputs[0]
    graph.operators = [node for node in graph.operators if node.outputs[0] not in same]
    codes = sorted({node.opcodeIndex for node in graph.operators})
    model.operatorCodes = [model.operatorCodes[at] for at in codes]
    for node in graph.operators:
        node.opcodeIndex = codes.index(node.opcodeIndex)
        node.inputs = [same.get(index, index) for index in node.inputs]
    read = {index for node in graph.operators for index in (*node.inputs, *node.outputs)}
    used = sorted({*read, *graph.inputs, *graph.outputs} - {_ABSENT})
    place = {index: at for at, index in enumerate(used)} | {_ABSENT: _ABSENT}
    graph.tensors = [graph.tensors[index] for index in used]
    for node in graph.operators:
        node.inputs, node.outputs = ([place[index] for index in indices] for indices in (node.inputs, node.outputs))
    graph.inputs, graph.outputs = ([place[index] for index in indices] for indices in (graph.inputs, graph.outputs))
    for signature in model.signatureDefs or ():
        for named in (*signature.inputs, *signature.outputs):
            named.tensorIndex = place[named.tensorIndex]


def _numbers(model: schema.ModelT, index: int) -> set[float]:
    """Return the different numbers of a constant, none of what is computed."""
    (graph,) = model.subgraphs
    data = model.buffers[graph.tensors[index].buffer].data
    floating = data is not None and graph.tensors[index].type == schema.TensorType.FLOAT32
    return set(np.frombuffer(bytes(data), np.float32).tolist()) if floating else set()


def _own_buffers(model: schema.ModelT) -> None:
    """Give every tensor a buffer of its own: constants that are equal share one, and may be packed differently."""
    (graph,) = model.subgraphs
    seen: set[int] = set()
    for tensor in graph.tensors:
        if tensor.buffer in seen and model.buffers[tensor.buffer].data is not None:
            model.buffers.append(copy.deepcopy(model.buffers[tensor.buffer]))
            tensor.buffer = len(model.buffers) - 1
        seen.add(tensor.buffer)


def _unfold(model: schema.ModelT, weights: list[Weight]) -> None:
    """Put integers and a DEQUANTIZE in place of each weight that the converter has folded to numbers; in place.

    It folds what multiplies a layer's answers in too, as the scale of attention's scores: then the scales are others.
    """
    (graph,) = model.subgraphs
    known: dict[tuple[int, ...], list[tuple[np.ndarray, int]]] = {}
    for weight in weights:
        for axes in (range(weight.codes.ndim), *_ORDERS.get(weight.codes.ndim, ())):
            codes = np.ascontiguousarray(weight.codes.transpose(axes))
            known.setdefault(codes.shape, []).append((codes, axes.index(weight.axis)))
    for index, tensor in enumerate(list(graph.tensors)):
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None:
            continue
        values = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
        match = _match(values, known.get(values.shape, []))
        if match is None:
            continue
        codes, scale, axis = match
        integers = copy.deepcopy(tensor)
        integers.type, integers.buffer = schema.TensorType.INT8, len(model.buffers)
        integers.quantization = schema.QuantizationParametersT()
        integers.quantization.scale = scale.tolist()
        integers.quantization.zeroPoint = [0] * len(scale)
        integers.quantization.quantizedDimension = axis
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(codes.tobytes(), np.uint8)
        model.buffers.append(buffer)
        graph.tensors.append(integers)
        model.buffers[tensor.buffer].data = None
        tensor.buffer = 0  # the empty one
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = _dequantize(model), [len(graph.tensors) - 1], [index]
        graph.operators.insert(0, node)


def _match(values: np.ndarray, known: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Return the integers that give those numbers, each channel's times its scale, with the scales and their axis."""
    for codes, axis in known:
        scales = _scales(values, codes, axis)
        if scales is not None:
            return codes, scales, axis
    return None


def _scales(values: np.ndarray, codes: np.ndarray, axis: int) -> np.ndarray | None:
    numbers, integers = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64) for x in (values, codes))
    squares = (integers**2).sum(1)
    scales = np.where(squares > 0, (numbers * integers).sum(1) / np.maximum(squares, 1), 1.0)
    exact = np.abs(numbers - scales[:, None] * integers).max() <= _ROUNDING * np.abs(numbers).max()
    return scales.astype(np.float32) if exact and (scales > 0).all() else None


def _dequantize(model: schema.ModelT) -> int:
    """Return the place of DEQUANTIZE among the operators that the file names."""
    wanted = schema.BuiltinOperator.DEQUANTIZE
    for place, code in enumerate(model.operatorCodes):
        if code.builtinCode == wanted:
            return place
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = wanted
    code.version = _DEQUANTIZE_VERSION
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
