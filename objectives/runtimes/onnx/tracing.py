"""Tracing of a finished model to an ONNX graph whose integer weights are still integers.

Import this module only where the ``onnx`` extra is installed.
"""

import importlib
from typing import Any

import torch
from onnx import ModelProto, TensorProto, helper
from onnxscript import ir, optimizer
from onnxscript import opset21 as op
from torch import Tensor, nn

from objectives.runtimes.flat import flat
from objectives.runtimes.onnx.packing import needs_two_bits
from objectives.runtimes.passes.zero_branches import remove_zero_branches
from objectives.runtimes.runtime import export_error, silence
from objectives.trees import Tree

_OPSET = 21  # first ONNX opset with 4-bit integers
_OPSET_TWO_BITS = 25  # first ONNX opset with 2-bit integers
_UINT8_MAX = 255


def trace(model: nn.Module, example: Tree, least_bits: int) -> ModelProto:
    """Return the graph of ``model``, with a dynamic batch dimension.

    Parameters
    ----------
    model
        A finished model in eval mode.
    example
        A batch of inputs.
    least_bits
        Bits of the narrowest integer type that the runtime reads: 2, 4 or 8.

    Raises
    ------
    ExportError
        If an operator has no ONNX form or the model cannot be traced.
    """
    weights = [
        tensor.cpu().numpy() for tensor in model.state_dict().values() if tensor.dtype in (torch.int8, torch.uint8)
    ]
    two_bits = least_bits == 2 and any(map(needs_two_bits, weights))  # noqa: PLR2004 - two bits
    opset = _OPSET_TWO_BITS if two_bits else _OPSET
    network = flat(model, example)
    # torch.export treats a dimension of size 1 as a constant
    two = tuple(tensor[:1].repeat_interleave(2, dim=0) for tensor in network.example)
    batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in two)
    dynamic = batch if network.module is model else (batch,)  # of a function with *tensors
    with silence(), torch.no_grad():
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers torch.ops.quantized_decomposed
        try:
            program = torch.onnx.export(
                _captured(network.module, two, dynamic),
                two,
                input_names=network.inputs,
                output_names=network.outputs,
                dynamo=True,
                verbose=False,
                optimize=False,
                external_data=False,
                opset_version=opset,
                dynamic_shapes=dynamic,
                custom_translation_table={torch.ops.quantized_decomposed.quantize_per_tensor.default: _quantize},
            )
        except torch.onnx.OnnxExporterError as error:
            raise export_error(model, "an ONNX", error) from error
        assert program is not None
        _optimize(program.model)
    return ir.to_proto(program.model)


def _captured(
    model: nn.Module, two: tuple[Tensor, ...], dynamic: tuple[Any, ...]
) -> nn.Module | torch.export.ExportedProgram:
    """Return the graph of ``model`` without branches of zeros, or ``model`` itself if it cannot be captured."""
    try:
        program = torch.export.export(model, two, dynamic_shapes=dynamic, strict=False)
    except Exception:  # noqa: BLE001 - the ONNX exporter tries other ways, and reports the error if it fails too
        return model
    remove_zero_branches(program.graph_module)
    return program


def _quantize(
    x: Any,  # noqa: ANN401 - a symbolic tensor of the exporter
    scale: float,
    zero_point: int,
    quant_min: int,  # noqa: ARG001
    quant_max: int,
    dtype: int,  # noqa: ARG001
) -> Any:  # noqa: ANN401
    """Translate quantize_per_tensor; ONNX saturates only at the limits of the type, so fewer bits need a Clip.

    The Clip acts on the integers after the quantizer: between a convolution and its quantizer it would prevent ONNX
    Runtime from fusing the two to an integer convolution.
    """
    codes = op.QuantizeLinear(x, op.Constant(value_float=scale), _uint8(zero_point))
    return codes if quant_max == _UINT8_MAX else op.Clip(codes, None, _uint8(quant_max))


def _uint8(value: int) -> Any:  # noqa: ANN401
    return op.Constant(value=helper.make_tensor("byte", TensorProto.UINT8, (), [value]))


def _optimize(model: ir.Model) -> None:
    """Fold constants and clean up ``model`` in place, but keep its integer weights.

    Folding would turn them into floating-point constants, so they are made graph inputs during the optimization.
    """
    graph = model.graph
    kinds = (ir.DataType.INT8, ir.DataType.UINT8)
    hidden = [(name, value, value.const_value) for name, value in graph.initializers.items() if value.dtype in kinds]
    for name, value, _ in hidden:
        graph.initializers.pop(name)
        graph.inputs.append(value)
        value.const_value = None
    optimizer.optimize(model)
    for _, value, codes in hidden:
        graph.inputs.remove(value)
        value.const_value = codes
        graph.register_initializer(value)
