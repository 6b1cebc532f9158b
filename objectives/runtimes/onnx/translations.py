"""How operators of PyTorch are written in ONNX: the exporter's translations, read once, and those that it lacks.

Import this module only where the ``onnx`` extra is installed.
"""

import contextlib
import copy
import functools
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from onnx import TensorProto, helper
from onnxscript import ir
from onnxscript import opset21 as op

_UINT8_MAX = 255


try:
    from torch.onnx._internal.exporter._registration import ONNXRegistry
except ImportError:  # another version of torch; there translations are read again for each file
    ONNXRegistry = None  # type: ignore[assignment,misc]

known_registries: dict[Any, Any] = {}  # the exporter's translations, by what they depend on


@contextlib.contextmanager
def translations_read_once() -> Iterator[None]:
    """Let the exporter read its translations once in a process, not once for each file.

    There are about 540, and reading parses the source of most of them: half of the export of a small network.
    """
    read = getattr(ONNXRegistry, "from_torchlib", None)
    if read is None:
        yield
        return

    def registry(**options: Any) -> Any:  # noqa: ANN401 - of a private class
        # operators that are not registered yet are left out, as torchvision's before it is imported
        key = "torchvision" in sys.modules, *sorted(options.items())
        if key not in known_registries:
            known_registries[key] = read(**options)
        own = copy.copy(known_registries[key])
        own.functions = {name: list(functions) for name, functions in own.functions.items()}  # the exporter adds ours
        return own

    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(registry)):
        yield


def _quantize(
    x: Any,  # noqa: ANN401 - a symbolic tensor of the exporter
    scale: float,
    zero_point: int,
    quant_min: int,  # noqa: ARG001
    quant_max: int,
    dtype: int,
) -> Any:  # noqa: ANN401
    """Translate quantize_per_tensor; ONNX saturates only at the limits of the type, so fewer bits need a Clip.

    The Clip acts on the integers after the quantizer: between a convolution and its quantizer it would prevent ONNX
    Runtime from fusing the two to an integer convolution.
    """
    if dtype == ir.DataType.INT8:  # the output of the file
        return op.QuantizeLinear(x, op.Constant(value_float=scale), _byte(zero_point, TensorProto.INT8))
    codes = op.QuantizeLinear(x, op.Constant(value_float=scale), _byte(zero_point))
    return codes if quant_max == _UINT8_MAX else op.Clip(codes, None, _byte(quant_max))


def _plain_recurrence(
    inputs: Any,  # noqa: ANN401 - symbolic tensors of the exporter, here and below
    state: Any,  # noqa: ANN401
    weights: Any,  # noqa: ANN401
    has_biases: bool,  # noqa: FBT001 - the signature is torch's
    layers: int,
    dropout: float,  # noqa: ARG001
    train: bool,  # noqa: ARG001, FBT001
    bidirectional: bool,  # noqa: FBT001
    batch_first: bool,  # noqa: FBT001
    *,
    activation: str,
) -> Any:  # noqa: ANN401
    """Translate rnn_tanh and rnn_relu, which the exporter would write step by step."""
    directions, held = 1 + bidirectional, 4 if has_biases else 2
    x = op.Transpose(inputs, perm=[1, 0, 2]) if batch_first else inputs
    last = []
    for layer in range(layers):
        at = range(layer * directions, (layer + 1) * directions)
        own = [[op.Unsqueeze(weight, _ints(0)) for weight in weights[held * one : held * (one + 1)]] for one in at]
        biases = [op.Concat(*one[2:], axis=1) for one in own if has_biases]
        sides = {"W": [one[0] for one in own], "R": [one[1] for one in own], "B": biases}
        every, end = op.RNN(
            x,
            **{name: op.Concat(*side, axis=0) if len(side) > 1 else side[0] for name, side in sides.items() if side},
            initial_h=op.Slice(state, _ints(at.start), _ints(at.stop), _ints(0)),
            activations=[activation] * directions,
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=state.shape[2],
        )
        x = op.Reshape(op.Transpose(every, perm=[0, 2, 1, 3]), _ints(0, 0, -1))
        last.append(end)
    x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    return x, op.Concat(*last, axis=0) if layers > 1 else last[0]


def _ints(*values: int) -> Any:  # noqa: ANN401
    return op.Constant(value_ints=values)


def _byte(value: int, kind: int = TensorProto.UINT8) -> Any:  # noqa: ANN401
    return op.Constant(value=helper.make_tensor("byte", kind, (), [value]))


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.quantized_decomposed.quantize_per_tensor.default: _quantize,
    torch.ops.aten.rnn_tanh.input: functools.partial(_plain_recurrence, activation="Tanh"),
    torch.ops.aten.rnn_relu.input: functools.partial(_plain_recurrence, activation="Relu"),
}
