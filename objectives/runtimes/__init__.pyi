from .errors import ExportError
from .executorch.runtime import ExecuTorch
from .litert.micro import TfliteMicro
from .litert.runtime import LiteRt
from .names import RUNTIMES, named
from .onnx.openvino import OpenVino
from .onnx.runtime import OnnxRuntime
from .runtime import Precision, Runtime

__all__ = [
    "RUNTIMES",
    "ExecuTorch",
    "ExportError",
    "LiteRt",
    "OnnxRuntime",
    "OpenVino",
    "Precision",
    "Runtime",
    "TfliteMicro",
    "named",
]
