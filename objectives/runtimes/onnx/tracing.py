"""Trace a finished model to an ONNX graph in which integer weights are still integers.

Import it only where the ``onnx`` extra is known to be there.
"""

import importlib
from typing import Any

import torch
from onnx import ModelProto, TensorProto, helper
from onnxscript import ir, optimizer
from onnxscript import opset21 as op
from torch import Tensor, nn

from objectives.runtimes.onnx.packing import needs_two_bits
from objectives.runtimes.passes.zero_branches import without_zeros
from objectives.runtimes.runtime import has_one_output, refused, silence

_OPSET = 21  # the first with 4-bit integers
_OPSET_TWO_BITS = 25  # the first with 2-bit integers
_LARGEST_BYTE = 255
_BATCHES = ({0: torch.export.Dim.DYNAMIC},)


def trace(model: nn.Module, example: Tensor) -> ModelProto:
    """Return the graph of ``model``, with a dynamic batch dimension.

    Parameters
    ----------
    model
        A finished model in eval mode with one tensor in and one out.
    example
        A batch of inputs.

    Raises
    ------
    ExportError
        If an operator has no ONNX form or the model cannot be traced.
    """
    weights = [
        tensor.cpu().numpy() for tensor in model.state_dict().values() if tensor.dtype in (torch.int8, torch.uint8)
    ]
    opset = _OPSET_TWO_BITS if any(map(needs_two_bits, weights)) else _OPSET
    two = example[:1].repeat_interleave(2, dim=0)  # torch.export takes a dimension of 1 for a constant
    with silence(), torch.no_grad():
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers torch.ops.quantized_decomposed
        try:
            program = torch.onnx.export(
                _captured(model, two),
                (two,),
                dynamo=True,
                verbose=False,
                optimize=False,
                external_data=False,
                opset_version=opset,
                dynamic_shapes=_BATCHES,
                custom_translation_table={torch.ops.quantized_decomposed.quantize_per_tensor.default: _quantize},
            )
        except torch.onnx.OnnxExporterError as error:
            raise refused(model, "an ONNX", error) from error
        assert program is not None
        has_one_output(model, len(program.model.graph.outputs))
        _optimize(program.model)
    return ir.to_proto(program.model)


def _captured(model: nn.Module, two: Tensor) -> nn.Module | torch.export.ExportedProgram:
    """Return the graph of ``model`` without what adds zeros, or ``model``, where the exporter must try other ways."""
    try:
        program = torch.export.export(model, (two,), dynamic_shapes=_BATCHES, strict=False)
    except Exception:  # noqa: BLE001 - the exporter fails too, and says so
        return model
    without_zeros(program.graph_module)
    return program


def _quantize(
    x: Any,  # noqa: ANN401 - a symbolic tensor of the exporter
    scale: float,
    zero_point: int,
    quant_min: int,  # noqa: ARG001
    quant_max: int,
    dtype: int,  # noqa: ARG001
) -> Any:  # noqa: ANN401
    """Translate quantize_per_tensor: ONNX saturates at the type's largest number, so fewer bits need a Clip.

    The Clip acts on integers, after the quantizer: between a convolution and its quantizer it would keep ONNX
    Runtime from joining the two to an integer convolution.
    """
    codes = op.QuantizeLinear(x, op.Constant(value_float=scale), _byte(zero_point))
    return codes if quant_max == _LARGEST_BYTE else op.Clip(codes, None, _byte(quant_max))


def _byte(value: int) -> Any:  # noqa: ANN401
    return op.Constant(value=helper.make_tensor("byte", TensorProto.UINT8, (), [value]))


def _optimize(model: ir.Model) -> None:
    """Fold and clean ``model`` in place, but leave its integer weights alone.

    Folding would turn them into floating-point constants, so they are inputs of unknown value meanwhile.
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
