"""OpenVINO: executes the same kind of .onnx file as ONNX Runtime, with integers of at least 4 bits."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from objectives.runtimes.file_layout import FileLayout
from objectives.runtimes.onnx.runtime import OnnxRuntime, write
from objectives.runtimes.runtime import Precision, import_extra

_LEAST_BITS = 4  # OpenVINO 2026.4 does not read the 2-bit integers of ONNX: "Unsupported data type INT2"
_BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class OpenVino:
    """OpenVINO on the CPU.

    It reads .onnx files. The format of its own, OpenVINO IR, is two files, one for the graph and one for the weights.
    Weights of 2 to 4 bits are stored as 4-bit integers.

    Parameters
    ----------
    threads
        Number of threads of one inference.
    """

    threads: int = 1

    @property
    def name(self) -> str:
        """``openvino``."""
        return "openvino"

    @property
    def suffix(self) -> str:
        """``onnx``."""
        return "onnx"

    @property
    def channels(self) -> int:
        """8, as for ONNX Runtime: the kernels process blocks of 8 or 16 channels."""
        return OnnxRuntime().channels

    @property
    def layout(self) -> FileLayout:
        """The bytes of ONNX files, without 2-bit integers."""
        return dataclasses.replace(OnnxRuntime().layout, floating_bits=_BITS, integer_bits=_BITS)

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        """Return 4 and 8 bits, for convolutions also with 8-bit inputs."""
        return tuple(pair for pair in OnnxRuntime().precisions(kind, groups) if pair.weights >= _LEAST_BITS)

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write ``model`` to one .onnx file with input ``x``, output ``y`` and any batch size.

        Parameters
        ----------
        model
            A finished model in eval mode with one input tensor and one output tensor; it is not changed.
        example
            A batch of inputs; only its dtype and its shape without the batch dimension matter.
        path
            The file to write; its folder must exist.

        Raises
        ------
        ExportError
            If an operator has no ONNX form or the model cannot be traced.
        ImportError
            If the ``openvino`` extra is not installed.
        """
        write(model, example, path, least_bits=_LEAST_BITS, extra=self.name)

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size.

        Parameters
        ----------
        path
            A file written by `export`.

        Raises
        ------
        ImportError
            If the ``openvino`` extra is not installed.
        """
        openvino = import_extra(self.name, "openvino")
        options = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # otherwise processors with bfloat16 compute in bfloat16
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # otherwise inputs of linear layers with integer weights are rounded
        }
        core = openvino.Core()
        request = core.compile_model(core.read_model(path.read_bytes()), "CPU", options).create_infer_request()

        def run(x: Tensor) -> Tensor:
            request.infer({"x": np.ascontiguousarray(x.detach().numpy())})
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

        return run
