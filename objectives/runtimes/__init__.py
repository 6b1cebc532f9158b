"""Runtimes: what stores a finished model in a file, and executes that file."""

from objectives.runtimes.executorch import ExecuTorch
from objectives.runtimes.litert import LiteRt
from objectives.runtimes.onnx import OnnxRuntime
from objectives.runtimes.runtime import ExportError, Precision, Runtime

__all__ = ["ExecuTorch", "ExportError", "LiteRt", "OnnxRuntime", "Precision", "Runtime"]
