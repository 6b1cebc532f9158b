"""The names of the runtimes, and where each is."""

from __future__ import annotations

import pkgutil
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objectives.runtimes.runtime import Runtime

RUNTIMES = {
    "onnx": "objectives.runtimes.onnx.runtime:OnnxRuntime",
    "litert": "objectives.runtimes.litert.runtime:LiteRt",
    "executorch": "objectives.runtimes.executorch.runtime:ExecuTorch",
    "tflite-micro": "objectives.runtimes.litert.micro:TfliteMicro",
    "openvino": "objectives.runtimes.onnx.openvino:OpenVino",
}
"""The names of the runtimes on the command line, and the class of each."""
WITH_VERSION = re.compile(r"(.+)-(\d[\d.]*)")


def name_of(runtime: Any) -> str:  # noqa: ANN401 - also one of which only the name is stored
    """Return the name from which `named` makes a runtime, with its version if it has one."""
    version = getattr(runtime, "version", "")
    return f"{runtime.name}-{version}" if version else str(runtime.name)


def named(name: str) -> Runtime:
    """Return the runtime with this name, with one thread; ``onnx-1.20`` is one whose version 1.20 takes the files.

    Raises
    ------
    ValueError
        If there is no such runtime or version; the message says what there is.
    """
    if found := WITH_VERSION.fullmatch(name):
        name, version = found.groups()
    if name not in RUNTIMES:
        raise ValueError(f"there is no runtime {name!r}; the names are {', '.join(RUNTIMES)}")
    kind = pkgutil.resolve_name(RUNTIMES[name])
    if found and not hasattr(kind, "oldest_version"):
        raise ValueError(f"no older version of {name} was tried, so leave out -{version}")
    runtime: Runtime = kind(version=version) if found else kind()
    return runtime
