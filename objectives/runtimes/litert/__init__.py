"""The LiteRT (TFLite) runtime: .tflite files."""

from objectives.runtimes.litert.runtime import LiteRt

__all__ = ["LiteRt"]
