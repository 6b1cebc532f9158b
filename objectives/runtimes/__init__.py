"""Runtimes: what stores a finished model in a file, and executes that file."""

from objectives.runtimes.onnx import OnnxRuntime
from objectives.runtimes.runtime import ExportError, Runtime

__all__ = ["ExportError", "OnnxRuntime", "Runtime"]
