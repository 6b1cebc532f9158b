"""ONNX Runtime: one .onnx file, with integer weights packed to their bits."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from objectives.runtimes.runtime import ExportError


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime on the CPU.

    The file holds what was trained: scales, zero points and codes as they are. Weights of 3 and 4 bits are stored
    as 4-bit integers, of 2 bits as 2-bit integers, of 5 to 8 bits as bytes; the indices of a codebook take 2, 4 or 8
    bits. Convolutions between quantized activations run in integer kernels, other layers in floating point with
    weights that are unpacked while the file is loaded.

    Parameters
    ----------
    threads
        Threads of one inference.
    """

    threads: int = 1

    @property
    def name(self) -> str:
        """``onnx``."""
        return "onnx"

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """The widths that a file packs."""
        return (2, 4, 8)

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """The widths of an unsigned byte; below 8, a Clip keeps the range."""
        return (4, 5, 6, 7, 8)

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write ``model`` to one .onnx file with input ``x``, output ``y`` and any batch size.

        Parameters
        ----------
        model
            A finished model in eval mode with one tensor in and one out; it is not changed.
        example
            A batch of inputs; only its shape behind the batch and its dtype count.
        path
            The file to write; its folder must exist.

        Raises
        ------
        ExportError
            If an operator has no ONNX form or the model cannot be traced.
        ImportError
            If the ``onnx`` extra is not installed.
        """
        onnx = _extra("onnx")
        if model.training:
            raise ExportError(
                f"a model must be in eval mode to be exported, but {type(model).__name__} is training: call eval()"
            )
        graph = _extra("objectives.runtimes.onnx_tracing").trace(model, example)
        packed = _extra("objectives.runtimes.onnx_packing").pack(graph)
        onnx.checker.check_model(packed)
        path.write_bytes(packed.SerializeToString(deterministic=True))

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size.

        Parameters
        ----------
        path
            A file that `export` has written.

        Raises
        ------
        ImportError
            If the ``onnx`` extra is not installed.
        """
        session = _open(path.read_bytes(), self.threads, wide=_saturates())

        def run(x: Tensor) -> Tensor:
            (result,) = session.run(None, {"x": np.ascontiguousarray(x.detach().numpy())})
            return torch.from_numpy(result)

        return run


def _extra(module: str) -> ModuleType:
    """Import a module of the ``onnx`` extra, or one of ours that needs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"ONNX files need the onnx extra, but {error.name or module} is missing: pip install slimfront[onnx]"
        ) from error


def _open(content: bytes, threads: int, *, wide: bool) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Start a session; ``wide`` asks for kernels that sum products in 32 bits, at about twice the time."""
    onnxruntime = _extra("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    if wide:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@cache
def _saturates() -> bool:
    """Tell whether integer convolutions on this processor clip their sums to 16 bits.

    x86 processors without VNNI add two uint8 x int8 products in 16 bits: 8-bit weights with 8-bit activations
    saturate (28 instead of 55 dB on a small network). `session.x64quantprecision` avoids that, but it doubles the time,
    also where nothing saturates, so the processor is asked with a convolution whose result is known.
    """
    helper, kinds = _extra("onnx").helper, _extra("onnx").TensorProto
    channels, step = 16, 255.0 * 127.0 * 16 / 200
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one"], ["e"]),
        helper.make_node("Conv", ["d", "e"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "step"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "step"], ["y"]),
    ]
    constants = [
        helper.make_tensor("one", kinds.FLOAT, (), [1.0]),
        helper.make_tensor("step", kinds.FLOAT, (), [step]),
        helper.make_tensor("w", kinds.INT8, (channels, channels, 1, 1), [127] * channels**2),
    ]
    shape = (1, channels, 4, 4)
    ends = [helper.make_tensor_value_info(name, kinds.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = _open(model.SerializeToString(), 1, wide=False)
    (result,) = session.run(None, {"x": np.full(shape, 255.0, np.float32)})
    return bool(result.min() < 199 * step)
