"""The runtimes against their contract, and properties of single runtimes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from objectives.runtimes import ExecuTorch, ExportError, LiteRt, OnnxRuntime, OpenVino, Runtime, TfliteMicro
from spaces import Quantize, deployed, trace, unfuse_attention
from spaces.testing import RuntimeContract
from spaces.testing.networks import CLASSES, Net, Plain, Residual, Separable, example, run, teacher
from spaces.testing.runtime_contract import sqnr
from spaces.testing.runtime_networks import Attentive

if TYPE_CHECKING:
    from pathlib import Path


class Tokens(Net):
    """A network with linear layers after norms, as in transformers; one layer reads each norm."""

    shape = (6, 10)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(10, 32), nn.LayerNorm(32)
        self.wide, self.thin = nn.Linear(32, 48), nn.Linear(48, 32)
        self.last, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.thin(nn.functional.gelu(self.wide(self.norm(x))))
        return run(self.last(x)[:, 0], self.head)


class TestOnnxRuntime(RuntimeContract):
    needs = ("onnx", "onnxruntime", "onnxscript")
    loads = "onnxruntime"

    def make(self) -> Runtime:
        return OnnxRuntime()


class TestOpenVino(RuntimeContract):
    needs = ("onnx", "onnxscript", "openvino")
    loads = "openvino"

    def make(self) -> Runtime:
        return OpenVino()


class TestLiteRt(RuntimeContract):
    needs = ("litert_torch", "ai_edge_litert")
    loads = "ai_edge_litert.interpreter"

    def make(self) -> Runtime:
        return LiteRt()

    def test_integer_layers_run_in_integer_kernels(self, tmp_path: Path) -> None:
        """A fully quantized network has no floating-point tensor in its file."""
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

    @pytest.mark.parametrize("block", [Tokens, Attentive, Residual], ids=["Tokens", "Attentive", "Residual"])
    def test_all_weights_are_integers_and_no_barrier_is_left(self, block: type[Net], tmp_path: Path) -> None:
        inputs = example(teacher(block), 64)
        net = unfuse_attention(teacher(block), inputs)
        names = [layer.name for layer in trace(net, inputs).layers]
        finished = deployed(Quantize(tuple((name, 4, 32) for name in names)).apply(net, inputs), inputs)
        self.make().export(finished, inputs, tmp_path / "model.tflite")
        interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(tmp_path / "model.tflite"))
        operators = Counter(node["op_name"] for node in interpreter._get_ops_details())
        assert operators["DEQUANTIZE"] == len(names)
        assert operators["MAXIMUM"] == 0

    def test_no_barrier_is_left_between_integer_and_float_layers(self, tmp_path: Path) -> None:
        """Layers that compute in floating point read outputs of integer layers, and the other way round."""
        net, path = teacher(Residual), tmp_path / "model.tflite"
        inputs = example(net, 64)
        widths = {"block1.conv1": (4, 32), "block2.conv2": (8, 32)}
        names = [layer.name for layer in trace(net, inputs).layers]
        steps = Quantize(tuple((name, *widths.get(name, (8, 8))) for name in names))
        self.make().export(deployed(steps.apply(net, inputs), inputs), inputs, path)
        model = pytest.importorskip("ai_edge_litert.tools.flatbuffer_utils").read_model(str(path))
        schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
        graph = model.subgraphs[0]
        integers = {index for index, tensor in enumerate(graph.tensors) if tensor.type == schema.TensorType.INT8}
        maxima = {
            index
            for index, code in enumerate(model.operatorCodes)
            if code.builtinCode == schema.BuiltinOperator.MAXIMUM
        }
        used = {node.opcodeIndex for node in graph.operators}
        assert used == set(range(len(model.operatorCodes)))
        assert not [x for x in graph.operators if x.opcodeIndex in maxima and x.inputs[0] in integers]


@pytest.mark.slow  # as LiteRT's, whose converter it shares; tests/test_tflite_micro.py has what is its own
class TestTfliteMicro(RuntimeContract):
    needs = ("litert_torch", "tflite_micro")
    loads = "tflite_micro.python.tflite_micro.runtime"
    extra = "micro"
    lacks = ("Conv3d",)

    def make(self) -> Runtime:
        return TfliteMicro()


class TestExecuTorch(RuntimeContract):
    needs = ("executorch",)
    loads = "executorch.runtime"
    lacks = ("Conv3d",)

    def make(self) -> Runtime:
        return ExecuTorch()

    @pytest.mark.parametrize("block", [Plain, Separable, Residual], ids=lambda block: block.__name__)
    def test_a_smaller_file_has_the_same_outputs(
        self, block: type[Net], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The networks flatten a feature map, or its mean; some of their biases are equal."""
        net = teacher(block)
        inputs = example(net, 64)
        names = [layer.name for layer in trace(net, inputs).layers]
        finished = deployed(Quantize(tuple((name, 8, 8) for name in names)).apply(net, inputs), inputs)
        runtime, small, large = self.make(), tmp_path / "small.pte", tmp_path / "large.pte"
        runtime.export(finished, inputs, small)
        monkeypatch.setattr(sys.modules["objectives.runtimes.executorch.lowering"], "packing", contextlib.nullcontext)
        runtime.export(finished, inputs, large)
        assert torch.equal(runtime.load(small)(inputs), runtime.load(large)(inputs))
        assert small.stat().st_size < large.stat().st_size * 0.65


class Repeated(nn.Module):
    """Uses a layer several times, in parts of a program that XNNPACK does not execute as one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = torch.cumsum(self.layer(x), 1)
        return x


def test_executorch_stores_a_weight_once_that_several_parts_use(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    net, inputs, path = Repeated().eval(), torch.randn(8, 64) / 64, tmp_path / "model.pte"
    ExecuTorch().export(net, inputs, path)
    assert path.stat().st_size < 2 * 4 * 64 * 64
    assert sqnr(net(inputs).detach(), ExecuTorch().load(path)(inputs)) > 80


@pytest.mark.parametrize("runtime", [LiteRt(), ExecuTorch()], ids=["litert", "executorch"])
def test_inputs_of_fewer_than_8_bits_are_an_error_where_no_kernel_reads_them(runtime: Runtime, tmp_path: Path) -> None:
    """The error names the setting that avoids it."""
    for module in ("litert_torch", "executorch"):
        pytest.importorskip(module)
    net = teacher(Plain)
    finished = deployed(Quantize((("second", 4, 6),)).apply(net, example(net)), example(net))
    message = (
        r"^this runtime rounds inputs of layers to 8 bits or not at all, but got 6 bits; "
        r"BitWidths\(runtime=\.\.\.\) offers the widths that it supports$"
    )
    with pytest.raises(ExportError, match=message):
        runtime.export(finished, example(net), tmp_path / "model")


SENDS_NOTHING = """
import os, sys
forks = []
os.register_at_fork(before=lambda: forks.append(True))
from objectives.runtimes.onnx.openvino import _without_telemetry
assert _without_telemetry("openvino").Core().available_devices
assert not forks
assert "openvino_telemetry" not in sys.modules
"""


def test_openvino_reports_nothing_to_its_maker() -> None:
    pytest.importorskip("openvino", exc_type=ImportError)
    subprocess.run([sys.executable, "-c", SENDS_NOTHING], check=True, timeout=120)
