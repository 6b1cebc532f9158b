"""The names of the runtimes, and where each is."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from objectives.runtimes.runtime import Runtime

RUNTIMES = {
    "onnx": "objectives.runtimes.onnx.runtime:OnnxRuntime",
    "litert": "objectives.runtimes.litert.runtime:LiteRt",
    "executorch": "objectives.runtimes.executorch.runtime:ExecuTorch",
    "tflite-micro": "objectives.runtimes.litert.micro:TfliteMicro",
    "openvino": "objectives.runtimes.onnx.openvino:OpenVino",
}


def named(name: str) -> Runtime:
    """Return the runtime with this name, with one thread.

    Raises
    ------
    ValueError
        If there is no such runtime; the message lists the names.
    """
    if name not in RUNTIMES:
        raise ValueError(f"there is no runtime {name!r}; the names are {', '.join(RUNTIMES)}")
    runtime: Runtime = pkgutil.resolve_name(RUNTIMES[name])()
    return runtime
