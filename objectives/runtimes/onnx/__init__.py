"""ONNX Runtime: .onnx files."""

from objectives.runtimes.onnx.runtime import OnnxRuntime

__all__ = ["OnnxRuntime"]
