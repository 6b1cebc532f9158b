"""On what something was measured: a time, or a budget of time, means little without it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from search.study.errors import UserError

EXECUTING = ("torch", "onnxruntime", "ai-edge-litert", "executorch")  # whose versions change what a network costs


@functools.cache
def identity() -> tuple[str, str, str, int | None, tuple[str, ...]]:
    """Return what tells this machine from others: kind, system, processor, cores, and versions of what executes."""
    return platform.machine(), platform.system(), _processor(), os.cpu_count(), tuple(map(_version, EXECUTING))


def words() -> str:
    """Say on what something was measured."""
    kind, system, name, cores, versions = identity()
    there = [f"{name} {version}" for name, version in zip(EXECUTING, versions, strict=True) if version]
    return ", ".join([name or kind, f"{cores} cores", system, *there])


def _processor() -> str:
    """Return the name of the processor, empty where the system does not tell it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "") or (
        platform.processor()
    )


def _version(name: str) -> str:
    """Return the version of a package, empty where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def device_named(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means on this machine.

    Raises
    ------
    UserError
        If there is no GPU for `cuda`.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use, and there is none; take --device auto or cpu")
    return torch.device(name)
