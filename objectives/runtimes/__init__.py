"""Runtimes, which store a finished model in a file and execute the file."""

from objectives.runtimes.executorch.runtime import ExecuTorch
from objectives.runtimes.litert.runtime import LiteRt
from objectives.runtimes.onnx.openvino import OpenVino
from objectives.runtimes.onnx.runtime import OnnxRuntime
from objectives.runtimes.runtime import ExportError, Precision, Runtime

RUNTIMES: dict[str, type[Runtime]] = {
    "onnx": OnnxRuntime,
    "litert": LiteRt,
    "executorch": ExecuTorch,
    "openvino": OpenVino,
}

__all__ = [
    "RUNTIMES",
    "ExecuTorch",
    "ExportError",
    "LiteRt",
    "OnnxRuntime",
    "OpenVino",
    "Precision",
    "Runtime",
    "named",
]


def named(name: str) -> Runtime:
    """Return the runtime with this name, with one thread.

    Raises
    ------
    ValueError
        If there is no such runtime; the message lists the names.
    """
    if name not in RUNTIMES:
        raise ValueError(f"there is no runtime {name!r}; the names are {', '.join(RUNTIMES)}")
    return RUNTIMES[name]()
