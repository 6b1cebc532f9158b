"""ONNX Runtime and OpenVINO: .onnx files."""

from objectives.runtimes.onnx.runtime import OnnxRuntime

__all__ = ["OnnxRuntime"]
