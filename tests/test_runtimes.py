"""The runtimes against their contract, and what is true of one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from objectives.runtimes import ExecuTorch, ExportError, LiteRt, OnnxRuntime, Runtime
from spaces import Quantize, deployed
from tests.nets import Plain, Residual, example, teacher
from tests.runtime_contract import RuntimeContract

if TYPE_CHECKING:
    from pathlib import Path


class TestOnnxRuntime(RuntimeContract):
    needs = ("onnx", "onnxruntime", "onnxscript")
    loads = "onnxruntime"

    def make(self) -> Runtime:
        return OnnxRuntime()


class TestLiteRt(RuntimeContract):
    needs = ("litert_torch", "ai_edge_litert")
    loads = "ai_edge_litert.interpreter"

    def make(self) -> Runtime:
        return LiteRt()

    def test_integer_layers_run_in_integer_kernels(self, tmp_path: Path) -> None:
        """Between the first and the last layer of a quantized network nothing is a float."""
        net = teacher(Residual)
        inputs = example(net, 64)
        names = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
        finished = deployed(Quantize(tuple((name, 8, 8) for name in names)).apply(net, inputs), inputs)
        self.make().export(finished, inputs, tmp_path / "model.tflite")
        interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(tmp_path / "model.tflite"))
        assert {str(tensor["dtype"]) for tensor in interpreter.get_tensor_details()} <= {
            "<class 'numpy.int8'>",
            "<class 'numpy.int32'>",
        }


class TestExecuTorch(RuntimeContract):
    needs = ("executorch",)
    loads = "executorch.runtime"
    lacks = ("Conv3d",)

    def make(self) -> Runtime:
        return ExecuTorch()


@pytest.mark.parametrize("runtime", [LiteRt(), ExecuTorch()], ids=["litert", "executorch"])
def test_inputs_of_fewer_bits_are_refused_where_no_kernel_takes_them(runtime: Runtime, tmp_path: Path) -> None:
    """The error names the way out."""
    for module in ("litert_torch", "executorch"):
        pytest.importorskip(module)
    net = teacher(Plain)
    finished = deployed(Quantize((("second", 4, 6),)).apply(net, example(net)), example(net))
    with pytest.raises(ExportError, match=r"rounded to 8 bits here, or not at all, but got 6 bits; BitWidths\(runtime"):
        runtime.export(finished, example(net), tmp_path / "model")
