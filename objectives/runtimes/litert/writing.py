"""Tensors and operators that are written into a .tflite file.

Import this module only where the ``litert`` extra is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

if TYPE_CHECKING:
    from collections.abc import Sequence

INT8, INT16, INT32, FLOAT32, BOOL = (
    getattr(schema.TensorType, name) for name in ("INT8", "INT16", "INT32", "FLOAT32", "BOOL")
)
_OLD_CODES = 127  # what the old field of a code holds for larger ones
_NUMBERS = {INT8: np.int8, INT16: np.int16, INT32: np.int32, FLOAT32: np.float32}
NO_INPUT = -1  # index of an optional input that an operator does not have


class Writer:
    """Writes tensors and operators into a subgraph of a file.

    Parameters
    ----------
    model
        The file.
    graph
        The subgraph; by default a new one, which is added to the file.
    """

    def __init__(self, model: schema.ModelT, graph: schema.SubGraphT | None = None) -> None:
        self.model, self.graph = model, schema.SubGraphT() if graph is None else graph
        if graph is None:
            self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
            model.subgraphs.append(self.graph)

    @property
    def place(self) -> int:
        """The index of the subgraph in the file."""
        return next(at for at, graph in enumerate(self.model.subgraphs) if graph is self.graph)

    def tensor(self, shape: Sequence[int], kind: int, scale: Any = None, zero: int = 0) -> int:  # noqa: ANN401 - a number or an array
        """Add a tensor that is computed, of one scale or one for each row, and return its index."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer, tensor.name = np.array(shape, np.int32), kind, 0, b""
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = scales, np.full(len(scales), zero, np.int64)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def like(self, other: schema.TensorT) -> int:
        """Add a tensor of the type, shape and grid of another one, and return its index."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer, tensor.name = other.shape, other.type, 0, b""
        tensor.quantization = other.quantization
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, values: Any, kind: int, scale: Any = None, zero: int = 0) -> int:  # noqa: ANN401 - numbers
        """Add a constant of given codes, and return its index."""
        codes = np.asarray(values).astype(_NUMBERS[kind])
        index = self.tensor(codes.shape, kind, scale, zero)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(codes.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[index].buffer = len(self.model.buffers) - 1
        return index

    def run(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> schema.OperatorT:  # noqa: ANN401 - of any operator
        """Add an operator by its name in the schema, and return it."""
        node = schema.OperatorT()
        node.opcodeIndex = place_of_operator(self.model, getattr(schema.BuiltinOperator, name), 1)
        node.inputs, node.outputs = list(inputs), list(outputs)
        if options is not None:
            node.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            node.builtinOptions = options
        self.graph.operators.append(node)
        return node


def place_of_operator(model: schema.ModelT, builtin: int, version: int) -> int:
    """Return the place of an operator in the table of a file, to which it is added in a version if it is missing."""
    for place, known in enumerate(model.operatorCodes):
        if known.builtinCode == builtin:
            return place
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, _OLD_CODES), version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
