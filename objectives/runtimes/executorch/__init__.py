"""The ExecuTorch runtime: .pte files."""

from objectives.runtimes.executorch.runtime import ExecuTorch

__all__ = ["ExecuTorch"]
