"""An ONNX graph with access to its constants, and the removal of all that execution does not need.

Import this module only where the ``onnx`` extra is installed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, count, product
from string import ascii_letters
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

# Attributes whose defaults are in the text of the ONNX standard, but not in its schemas: all ones, or all zeros.
_ONES_BY_DEFAULT = {"dilations", "strides"}
_ZEROS_BY_DEFAULT = {"output_padding", "pads"}
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_QUANTIZERS = {"DequantizeLinear", "QuantizeLinear"}


class Graph:
    """A view of an ONNX graph; methods that change the graph do so in place."""

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer
        }
        self._free_names = (f"packed_{index}" for index in count())

    def producer(self, value: str) -> NodeProto | None:
        """Return the node that computes ``value``; None for an input or a constant."""
        return next((node for node in self.proto.node if value in node.output), None)

    def readers(self, value: str) -> list[NodeProto]:
        """Return the nodes that read ``value``."""
        return [node for node in self.proto.node if any(value in inner.input for inner in _with_inner([node]))]

    def only_reader(self, value: str) -> NodeProto | None:
        """Return the only node that reads ``value``; None if there are several, or if it is an output of the graph."""
        readers = self.readers(value)
        is_output = any(output.name == value for output in self.proto.output)
        return readers[0] if len(readers) == 1 and not is_output else None

    def source(self, value: str, through: set[str]) -> NodeProto | None:
        """Return the node that computes ``value``, skipping operators of the types ``through``."""
        node = self.producer(value)
        while node is not None and node.op_type in through:
            node = self.producer(node.input[0])
        return node

    def sink(self, value: str, through: set[str]) -> NodeProto | None:
        """Return the only node that reads ``value``, skipping operators of the types ``through``."""
        node = self.only_reader(value)
        while node is not None and node.op_type in through:
            node = self.only_reader(node.output[0])
        return node

    def replace(self, value: str, other: str) -> None:
        """Let all nodes that read ``value`` read ``other`` instead."""
        for node in _with_inner(self.readers(value)):
            node.input[:] = [other if name == value else name for name in node.input]

    def scalar(self, value: str) -> float:
        """Return the constant ``value`` of one element as a number."""
        return float(self.constants[value].item())

    def add_constant(self, array: NDArray[Any]) -> str:
        """Store ``array``, or find an equal scalar that is stored already; return its name."""
        for name, known in self.constants.items():
            if array.ndim == known.ndim == 0 and known.dtype == array.dtype and known == array:
                return name
        name = next(self._free_names)
        self.constants[name] = array
        self.proto.initializer.append(numpy_helper.from_array(array, name))
        return name

    def insert_before(self, node: NodeProto, op_type: str, inputs: list[str], **attributes: Any) -> str:  # noqa: ANN401
        """Insert a new node before ``node`` and return the name of its output."""
        output = next(self._free_names)
        position = next(index for index, other in enumerate(self.proto.node) if other is node)
        self.proto.node.insert(position, helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def drop_unused(self) -> None:
        """Remove the nodes and constants that no output depends on."""
        needed = {output.name for output in self.proto.output}
        for node in reversed(list(self.proto.node)):
            if needed.isdisjoint(node.output):
                self.proto.node.remove(node)
            else:
                needed.update(*(inner.input for inner in _with_inner([node])))
        for tensor in list(self.proto.initializer):
            if tensor.name not in needed:
                self.proto.initializer.remove(tensor)
                del self.constants[tensor.name]


def whole_number(node: NodeProto, name: str, default: int) -> int:
    """Return an attribute of a node that is a whole number, ``default`` where the node does not have it."""
    return next((item.i for item in node.attribute if item.name == name), default)


def strip(model: ModelProto) -> None:
    """Remove, in place, all that execution does not need: texts, inferred shapes, default attributes, long names."""
    graph = Graph(model.graph)
    graph.drop_unused()
    for node in _with_inner(model.graph.node):
        if node.op_type in _QUANTIZERS:
            _drop_zero_point(graph, node)
        kept = [item for item in node.attribute if not _is_default(node, item, model.opset_import[0].version)]
        del node.attribute[:]
        node.attribute.extend(kept)
        for field in ("name", "doc_string", "metadata_props", "overload"):
            node.ClearField(field)
    graph.drop_unused()
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props", "functions"):
        model.ClearField(field)
    for field in ("value_info", "doc_string", "metadata_props"):
        model.graph.ClearField(field)
    model.graph.name = "g"
    _rename(model.graph)


def _bodies(node: NodeProto) -> list[GraphProto]:
    """Return the graphs that a node contains, as a loop does; they read values of the graph around them too."""
    return [item.g for item in node.attribute if item.type == AttributeProto.GRAPH]


def _with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield the nodes, and those of the graphs that they contain."""
    for node in nodes:
        yield node
        for body in _bodies(node):
            yield from _with_inner(body.node)


def _drop_zero_point(graph: Graph, node: NodeProto) -> None:
    """Drop a zero point of zero: without one, ONNX assumes zero, as uint8 when quantizing, as the input's type else."""
    if len(node.input) == 3 and node.input[2] in graph.constants:  # noqa: PLR2004 - value, scale, zero point
        zero_point = graph.constants[node.input[2]]
        is_default = node.op_type == "DequantizeLinear" or zero_point.dtype == np.uint8
        if is_default and not zero_point.any():
            del node.input[2:]


def _is_default(node: NodeProto, item: AttributeProto, opset: int) -> bool:
    """Return whether ``item`` has its default value, so that dropping it changes nothing."""
    value = helper.get_attribute_value(item)
    if item.name in _ONES_BY_DEFAULT | _ZEROS_BY_DEFAULT:
        return set(value) <= ({1} if item.name in _ONES_BY_DEFAULT else {0})
    if item.name == "kernel_shape" and node.op_type in _CONVOLUTIONS:
        return True  # the weight has that shape
    declared = onnx.defs.get_schema(node.op_type, opset).attributes.get(item.name)
    if declared is None or declared.default_value.type == AttributeProto.UNDEFINED:
        return False
    return bool(value == helper.get_attribute_value(declared.default_value))


def _rename(graph: GraphProto) -> None:
    """Give every value the shortest free name, except inputs and outputs."""
    names = {name: name for name in ("", *(item.name for item in (*graph.input, *graph.output)))}
    free_names = _short_names(set(names))
    nodes = list(_with_inner(graph.node))
    bodies = [body for node in nodes for body in _bodies(node)]
    inner = [item for body in bodies for item in (*body.input, *body.initializer)]
    for value in chain((item.name for item in (*graph.initializer, *inner)), *(node.output for node in nodes)):
        if value not in names:
            names[value] = next(free_names)
    for item in (*graph.input, *graph.output, *graph.initializer, *inner, *(item for x in bodies for item in x.output)):
        item.name = names[item.name]
        item.doc_string = ""
    for body in bodies:
        for field in ("value_info", "doc_string", "metadata_props"):
            body.ClearField(field)
        body.name = "g"
        for item in (*body.input, *body.output):
            item.ClearField("metadata_props")
            item.type.tensor_type.ClearField("shape")
    for node in nodes:
        node.input[:] = [names[value] for value in node.input]
        node.output[:] = [names[value] for value in node.output]
    _name_batch(graph)


def _short_names(taken: set[str]) -> Iterator[str]:
    """Yield a, b, ..., aa, ab, ... without those that are taken."""
    for length in count(1):
        for letters in product(ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name


def _name_batch(graph: GraphProto) -> None:
    """Name the dynamic batch dimension ``N``, and remove the names of all other dynamic dimensions."""
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for item in (*graph.input, *graph.output):
        item.ClearField("metadata_props")
        for dim in item.type.tensor_type.shape.dim:
            dim.ClearField("denotation")
            if dim.dim_param == batch:
                dim.dim_param = "N"
            elif dim.dim_param:
                dim.ClearField("dim_param")


def store(graph: Graph, name: str, kind: int, shape: tuple[int, ...], packed: bytes) -> None:
    """Replace the constant ``name`` by ``packed``, the bytes of elements of the ONNX type ``kind``."""
    tensor = next(tensor for tensor in graph.proto.initializer if tensor.name == name)
    tensor.CopyFrom(TensorProto(name=name, data_type=kind, dims=shape, raw_data=packed))
