"""Conversion of a finished network to a LiteRT file whose weights are stored in as few bits as they need.

Import this module only where the ``litert`` extra is installed.
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

from objectives.flat import flat
from objectives.runtimes.ends import WithEnds, network_of
from objectives.runtimes.errors import ExportError
from objectives.runtimes.exporting import exporting
from objectives.runtimes.file_layout import pack_bits
from objectives.runtimes.litert.barriers import remove_barriers
from objectives.runtimes.litert.byte_inputs import make_codes_of_bytes
from objectives.runtimes.litert.concatenations import split_concatenations
from objectives.runtimes.litert.ends import set_types
from objectives.runtimes.litert.folded_weights import Weight, restore_integer_weights
from objectives.runtimes.litert.gelu import write_out_gelu
from objectives.runtimes.litert.layouts import mended_layouts
from objectives.runtimes.litert.loops import Loop, without_loops
from objectives.runtimes.litert.signatures import DEFAULT_SIGNATURE, joined
from objectives.runtimes.litert.steps import insert_loops
from objectives.runtimes.litert.transpositions import split_transpositions
from objectives.runtimes.passes.constants import constant, put_constant
from objectives.runtimes.passes.flatbuffers import serialize
from objectives.runtimes.passes.grid import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE
from objectives.runtimes.passes.integers import ALMOST_ONE, integer_graph, isolate, movers, on_grid
from objectives.runtimes.passes.ranges import one_by_one
from objectives.runtimes.passes.zero_branches import ATEN
from objectives.runtimes.runtime import export_error
from objectives.runtimes.signatures import entries

if TYPE_CHECKING:
    from torch import fx, nn

    from objectives.trees import Tree

_QUANTIZE_WEIGHT = torch.ops.quantized_decomposed.quantize_per_channel.default
_TFLITE_IDENTIFIER = b"TFL3"
_UNPACKING_OPERATORS = {schema.BuiltinOperator.DEQUANTIZE}
_LAYER_OPERATORS = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D,
                    schema.BuiltinOperator.FULLY_CONNECTED}  # fmt: skip


class Storage(NamedTuple):
    """How an interpreter takes weights.

    Attributes
    ----------
    packed
        The types of fewer than 8 bits: the type, its bits, and the operators that can read it.
    unpacks
        Whether it unpacks integer weights for layers that compute in floating point; they are stored as floats
        otherwise.
    alignment
        Constants begin at multiples of so many bytes.
    concatenated
        The most tensors that one operator concatenates; None for any number.
    transposed
        The most dimensions that it transposes.
    gelu
        Whether it has GELU.
    casts_bytes
        Whether it makes floats of bytes that are no codes.
    loops
        Whether loops stay loops; otherwise their steps are written one after another.
    """

    packed: tuple[tuple[int, int, set[int]], ...]
    unpacks: bool
    alignment: int
    concatenated: int | None
    transposed: int
    gelu: bool
    casts_bytes: bool
    loops: bool

    def of_widths(self, widths: tuple[int, ...]) -> Storage:
        """Return the storage without types of other widths."""
        return self._replace(packed=tuple(one for one in self.packed if one[1] in widths))


LITERT = Storage(
    packed=(
        (schema.TensorType.INT2, 2, _UNPACKING_OPERATORS),
        (schema.TensorType.INT4, 4, _UNPACKING_OPERATORS | _LAYER_OPERATORS),
    ),
    unpacks=True,
    alignment=1,
    concatenated=None,
    transposed=6,  # kTransposeMaxDimensions of its kernel
    gelu=True,
    casts_bytes=True,
    loops=False,
)
# its DEQUANTIZE reads one scale where a weight has one for each channel, and its linear layers take 8 bits alone
MICRO = Storage(
    packed=((schema.TensorType.INT4, 4, _LAYER_OPERATORS - {schema.BuiltinOperator.FULLY_CONNECTED}),),
    unpacks=False,
    alignment=16,
    concatenated=10,  # kMaxInputNum of its kernel
    transposed=5,  # of its kernel
    gelu=False,
    casts_bytes=False,
    loops=True,
)


def convert(model: nn.Module, example: Tree, storage: Storage = LITERT) -> bytes:
    """Return the bytes of a file for an interpreter; see `Runtime.export`."""
    parts = {name: _converted(model, one, storage) for name, one in entries(model, example, DEFAULT_SIGNATURE)}
    # it stores equal vectors once, such as the zero points, 8 bytes of 0 for each channel
    return serialize(joined(parts), _TFLITE_IDENTIFIER, storage.alignment)


def _converted(model: nn.Module, example: Tree, storage: Storage) -> schema.ModelT:
    """Return a file for inputs of the size of the example."""
    ends = model if isinstance(model, WithEnds) else None
    if ends is not None:
        model, example = ends.of_floats(), ends.floats_of(example)
    network = flat(model, example)
    with exporting():
        try:
            module, examples = network.module, one_by_one(network.example)
            module, examples, loops = without_loops(module, examples) if storage.loops else (module, examples, [])
            graph_module = integer_graph(module, examples, mixed=True, unpacks=storage.unpacks)
            _isolate_operators_of_one_grid(graph_module)
            if not storage.gelu:
                write_out_gelu(graph_module)
            weights = _quantize_weights(graph_module)
            config = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
            # the configuration only makes the converter replace the quantizers of the graph by integers
            converter = {"quant_config": QuantConfig(pt2e_quantizer=config)} if weights else {}
            with mended_layouts():
                edge = litert_torch.convert(graph_module, examples[0], **converter)
            with tempfile.TemporaryDirectory() as folder:
                edge.export(str(Path(folder) / "model"))
                content = (Path(folder) / "model").read_bytes()
        except ExportError:
            raise
        except Exception as error:  # the converter raises exceptions of any type
            raise export_error(network_of(model), "a LiteRT", error) from error
    return _pack(content, weights, loops, storage, ends)


def _isolate_operators_of_one_grid(graph_module: fx.GraphModule) -> None:
    """Insert a factor of one where the converter would compute floats of the network with integers, in place.

    Kernels that resize, concatenate and split integers have one grid. The converter would give the input of the network
    that of the resized one, floats that are joined with integers the grid of these, and all that a tensor is made of or
    split into that of a layer which reads a part. So it would clip values, or fail. It does not do so beyond a product.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        inputs = node.all_input_nodes
        if node.target == ATEN.upsample_bilinear2d.vec:
            if inputs[0].op == "placeholder" and any(user.target == QUANTIZE for user in node.users):
                readers = list(node.users)
                with graph.inserting_after(node):
                    product = graph.call_function(ATEN.mul.Tensor, (node, ALMOST_ONE))
                for reader in readers:
                    reader.replace_input_with(node, product)
        elif node.target == ATEN.cat.default and not all(on_grid(one, mixed=True) for one in inputs):
            for source in [one for one in inputs if on_grid(one, mixed=True)]:
                isolate(node, source)
        elif node.target == QUANTIZE and _is_part_of_floats(inputs[0]):
            isolate(node, inputs[0])
    graph_module.recompile()


def _is_part_of_floats(node: fx.Node) -> bool:
    """Return whether floats that are only moved, joined or split are also read elsewhere."""
    shared = False
    while node.target in movers(mixed=True):
        shared = shared or len(node.users) > 1
        node = node.all_input_nodes[0]
    if node.target == ATEN.cat.default:
        return not all(on_grid(one, mixed=True) for one in node.all_input_nodes)
    return shared and node.target != DEQUANTIZE


def _quantize_weights(graph_module: fx.GraphModule) -> list[Weight]:
    """Write every integer weight as a float and a quantizer, which the converter can read; return the weights."""
    graph, weights = graph_module.graph, []
    for node in [node for node in graph.nodes if node.target == DEQUANTIZE_WEIGHT]:
        codes, scale, zeros, axis, *ends = node.args
        integers, scales = constant(graph_module, codes), constant(graph_module, scale)
        shape = [-1 if dimension == axis else 1 for dimension in range(integers.dim())]
        with graph.inserting_before(node):
            copied_codes = graph.create_node("get_attr", codes.target)
        values = integers * scales.reshape(shape)
        floats = put_constant(graph_module, copied_codes, values)
        with graph.inserting_before(node):
            quantized = graph.call_function(_QUANTIZE_WEIGHT, (floats, scale, zeros, axis, *ends))
        node.args = (quantized, *node.args[1:])
        weights.append(Weight(integers.numpy(), axis))
    graph_module.recompile()
    return weights


def _pack(
    content: bytes, weights: list[Weight], loops: list[Loop], storage: Storage, ends: WithEnds | None
) -> schema.ModelT:
    """Return the file with weights of 2 or 4 bits where the codes fit, and without all that no runtime reads."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    remove_barriers(model)
    _separate_buffers(model)
    if loops:
        insert_loops(model, loops)
    if storage.unpacks:
        restore_integer_weights(model, weights)
    if ends is not None:
        set_types(model, ends)
    if not storage.casts_bytes:
        make_codes_of_bytes(model)
    if storage.concatenated is not None:
        split_concatenations(model, storage.concatenated)
    split_transpositions(model, storage.transposed)
    _narrow(model, storage)
    model.metadata = []
    model.description = b""
    _drop_empty(model)
    return model


def _narrow(model: schema.ModelT, storage: Storage) -> None:
    """Store weights in 2 or 4 bits where the codes fit, and drop the names of tensors inside the graph; in place."""
    graph = model.subgraphs[0]
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
        for kind, bits, readers in storage.packed:
            if users.get(index, set()) <= readers and np.abs(codes.astype(np.int16)).max() < 2 ** (bits - 1):
                model.buffers[tensor.buffer].data = pack_bits(codes, bits)
                tensor.type = kind
                break


def narrowest(content: bytes) -> int:
    """Return the bits of the narrowest weights in a file."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    kinds = {tensor.type for graph in model.subgraphs for tensor in graph.tensors}
    return next((bits for kind, bits, _ in LITERT.packed if kind in kinds), 8)


def _drop_empty(model: schema.ModelT) -> None:
    """Remove buffers without data except the first, to which tensors without data refer, and empty quantizations."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    used = [0, *sorted({tensor.buffer for tensor in tensors if model.buffers[tensor.buffer].data is not None})]
    place = {buffer: at for at, buffer in enumerate(used)}
    for tensor in tensors:
        tensor.buffer = place.get(tensor.buffer, 0)
        if tensor.quantization is not None and tensor.quantization.scale is None:
            tensor.quantization = None
        elif tensor.quantization is not None:
            tensor.quantization.zeroPoint = np.asarray(tensor.quantization.zeroPoint, np.int64)
    model.buffers = [model.buffers[index] for index in used]


def _separate_buffers(model: schema.ModelT) -> None:
    """Give every tensor its own buffer: equal constants share one, but may be packed differently."""
    graph = model.subgraphs[0]
    seen: set[int] = set()
    for tensor in graph.tensors:
        if tensor.buffer in seen and model.buffers[tensor.buffer].data is not None:
            model.buffers.append(copy.deepcopy(model.buffers[tensor.buffer]))
            tensor.buffer = len(model.buffers) - 1
        seen.add(tensor.buffer)
