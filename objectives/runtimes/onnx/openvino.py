"""OpenVINO: executes the same kind of .onnx file as ONNX Runtime, with integers of at least 4 bits."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch

from objectives.runtimes.onnx.loading import OPENVINO_LOADING
from objectives.runtimes.onnx.runtime import OnnxRuntime, arrays
from objectives.runtimes.runtime import import_extra
from objectives.trees import Tree


@dataclass(frozen=True, slots=True)
class OpenVino(OnnxRuntime):
    """OpenVINO on the CPU.

    It reads .onnx files. The format of its own, OpenVINO IR, is two files, one for the graph and one for the weights.
    Weights of 2 to 4 bits are stored as 4-bit integers. Linear layers keep floating-point inputs.

    Parameters
    ----------
    threads, version
        See `OnnxRuntime`.
    """

    # OpenVINO 2026.4 does not read 2 bits: "Unsupported data type INT2"; 2025.2 fails with rounded inputs
    oldest: ClassVar[Mapping[int, str]] = {4: "2025.4", 8: "2025.4"}
    loops: ClassVar[bool] = False  # nor a Scan whose body reads values outside: "num_scan_outputs can't be negative"
    own_operators: ClassVar[bool] = False
    integer_kinds: ClassVar[frozenset[str]] = frozenset({"Conv1d", "Conv2d", "Conv3d"})

    @property
    def name(self) -> str:
        """``openvino``."""
        return "openvino"

    @property
    def loading(self) -> Mapping[str, str]:
        """How a file is loaded, by language."""
        return OPENVINO_LOADING

    def load(self, path: Path) -> Callable[[Tree], Tree]:
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
        openvino = _without_telemetry(self.name)
        options = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # otherwise processors with bfloat16 compute in bfloat16
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # otherwise inputs of linear layers with integer weights are rounded
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path.read_bytes()), "CPU", options)
        request, names = compiled.create_infer_request(), [one.any_name for one in compiled.inputs]

        def run(x: Tree) -> Tree:
            request.infer(arrays(names, x))
            count = len(compiled.outputs)
            results = [torch.from_numpy(request.get_output_tensor(index).data.copy()) for index in range(count)]
            return results[0] if count == 1 else tuple(results)

        return run


def _without_telemetry(extra: str) -> ModuleType:
    """Import OpenVINO, which reports every import to its maker, from a fork of the process, unless this is missing."""
    module = "openvino_telemetry"
    before = {module: sys.modules[module]} if module in sys.modules else {}
    sys.modules[module] = None  # type: ignore[assignment]  # its import fails, which OpenVINO allows for
    try:
        return import_extra(extra, "openvino")
    finally:
        del sys.modules[module]
        sys.modules.update(before)
