"""Tracing of a finished model to an ONNX graph whose integer weights are still integers.

Import this module only where the ``onnx`` extra is installed.
"""

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from onnx import ModelProto
from onnxscript import ir, optimizer
from torch import Tensor, nn

from objectives.flat import by_argument, flat
from objectives.layers import Repeating
from objectives.runtimes.ends import free_dimensions, network_of
from objectives.runtimes.exporting import exporting
from objectives.runtimes.onnx.packing import TWO_BITS_OPSET, needs_two_bits
from objectives.runtimes.onnx.translations import TRANSLATIONS, translations_read_once
from objectives.runtimes.passes.zero_branches import remove_zero_branches
from objectives.runtimes.runtime import export_error
from objectives.trees import Tree

_OPSET = 21  # first ONNX opset with 4-bit integers
_FOLDED_SIZE = 2**20  # elements of a constant that is folded, such as the zero points of a layer with many outputs


def trace(model: nn.Module, example: Tree, least_bits: int, *, loops: bool) -> ModelProto:
    """Return the graph of ``model``, with a dynamic batch dimension, and dynamic sizes of images where asked.

    Parameters
    ----------
    model
        A finished model in eval mode.
    example
        A batch of inputs.
    least_bits
        Bits of the narrowest integer type that the runtime reads: 2, 4 or 8.
    loops
        Whether the runtime executes loops; otherwise steps are repeated in the graph.

    Raises
    ------
    ExportError
        If an operator has no ONNX form or the model cannot be traced.
    """
    weights = [
        tensor.cpu().numpy() for tensor in model.state_dict().values() if tensor.dtype in (torch.int8, torch.uint8)
    ]
    two_bits = least_bits == 2 and any(map(needs_two_bits, weights))  # noqa: PLR2004 - two bits
    opset = TWO_BITS_OPSET if two_bits else _OPSET
    network = flat(model, example)
    # torch.export treats a dimension of size 1 as a constant
    two = tuple(tensor[:1].repeat_interleave(2, dim=0) for tensor in network.example)
    batch = [dict.fromkeys((0, *free_dimensions(model, tensor)), torch.export.Dim.DYNAMIC) for tensor in two]
    dynamic = by_argument(network.module, batch)
    with exporting(), translations_read_once():
        try:
            program = torch.onnx.export(
                _captured(network.module, two, dynamic, loops=loops),
                two,
                input_names=network.inputs,
                output_names=network.outputs,
                dynamo=True,
                verbose=False,
                optimize=False,
                external_data=False,
                opset_version=opset,
                dynamic_shapes=dynamic,
                custom_translation_table=TRANSLATIONS,
            )
        except torch.onnx.OnnxExporterError as error:
            raise export_error(network_of(model), "an ONNX", error) from error
        assert program is not None
        _optimize(program.model)
    return ir.to_proto(program.model)


def _captured(
    model: nn.Module, two: tuple[Tensor, ...], dynamic: tuple[Any, ...], *, loops: bool
) -> nn.Module | torch.export.ExportedProgram:
    """Return the graph of ``model`` without branches of zeros, or ``model`` itself if it cannot be captured."""
    repeating = [module for module in model.modules() if isinstance(module, Repeating)]
    try:
        for module in repeating:
            module.loops = loops
        program = torch.export.export(model, two, dynamic_shapes=dynamic, strict=False)
    except Exception:  # noqa: BLE001 - the ONNX exporter tries other ways, and reports the error if it fails too
        return model
    finally:
        for module in repeating:
            module.loops = False
    remove_zero_branches(program.graph_module)
    return program


def _optimize(model: ir.Model) -> None:
    """Fold constants and clean up ``model`` in place, but keep its integer weights and the factors of its weights.

    Folding would turn them into larger constants, so they are made graph inputs during the optimization.
    """
    graph = model.graph
    kinds = (ir.DataType.INT8, ir.DataType.UINT8)
    stored = set(graph.initializers.values())
    factors = {
        one for node in graph if node.op_type == "MatMul" and stored.issuperset(node.inputs) for one in node.inputs
    }
    hidden = [
        (name, value, value.const_value)
        for name, value in graph.initializers.items()
        if value.dtype in kinds or value in factors
    ]
    for name, value, _ in hidden:
        graph.initializers.pop(name)
        graph.inputs.append(value)
        value.const_value = None
    optimizer.optimize(model, input_size_limit=_FOLDED_SIZE)
    for _, value, constant in hidden:
        graph.inputs.remove(value)
        value.const_value = constant
        graph.register_initializer(value)
