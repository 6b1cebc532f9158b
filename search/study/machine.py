"""The machine on which something is measured: times are comparable only on the same machine."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import uuid
from pathlib import Path

import torch

from search.study.errors import UserError

# Packages that execute networks; their versions change how long a network takes.
EXECUTING_PACKAGES = ("torch", "onnxruntime", "ai-edge-litert", "executorch", "openvino")
# Later ones count only where they are installed, so that times measured before are still those of the same machine.
LATER_PACKAGES = ("tflite-micro",)

# Options of glibc's `mallopt` (malloc.h), and the environment variables by which a user chooses them.
TRIM_THRESHOLD, MAP_THRESHOLD = -1, -3
ALLOCATOR_VARIABLES = "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
# Larger blocks are still mapped, since networks of other shapes could not use the holes that they leave (chosen).
NEVER, LARGEST_BLOCK = -1, 2**27
HELD_SHARE = 1 / 4  # of a core's share of the memory; taking more, a process gives freed memory back again (chosen)

LEAST_MEMORY = 4 * 2**30  # bytes that a machine is taken to have if the system does not say


@functools.cache
def identity() -> tuple[str, str, str, int | None, tuple[str, ...]]:
    """Identify this machine: architecture, system, processor, number of cores, versions of the executing packages."""
    versions = tuple(map(version_of, _packages()))
    return platform.machine(), platform.system(), _processor(), os.cpu_count(), versions


def _packages() -> tuple[str, ...]:
    return *EXECUTING_PACKAGES, *filter(version_of, LATER_PACKAGES)


@functools.cache
def running_system() -> str:
    """Return a name of the operating system that runs this process, from its start to its end.

    It is that of Linux's kernel, which containers of one machine share; elsewhere it is that of the machine.
    """
    boot = Path("/proc", "sys", "kernel", "random", "boot_id")
    return boot.read_text().strip() if boot.exists() else f"{uuid.getnode():x}"


def words(runtime: str = "") -> str:
    """Describe this machine in one line, with the versions of torch and of a runtime, by default of all runtimes."""
    architecture, system, processor, cores, versions = identity()
    installed = [f"{name} {version}" for name, version in zip(_packages(), versions, strict=True) if version]
    installed = [one for one in installed if runtime in one or one.startswith("torch ")]
    return ", ".join([processor or architecture, f"{cores} cores", system, *installed])


def memory_bytes() -> int:
    """Return the bytes of memory that this process may use: those of the machine, or of its container."""
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    physical = pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else LEAST_MEMORY
    return min(physical, int(allowed)) if allowed.isdigit() else physical


def _processor() -> str:
    """Return the name of the processor, empty if the system does not report it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "") or (
        platform.processor()
    )


def version_of(name: str) -> str:
    """Return the version of a package, empty if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def device_named(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `auto` is the GPU if torch can use one, otherwise the CPU.

    Raises
    ------
    UserError
        If `cuda` is asked for and torch cannot use a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use, but there is none; use --device auto or cpu")
    return torch.device(name)


_HELD_AFTER: dict[str, int] = {}  # bytes that this process held when it last gave freed memory back


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free, for the next ones; `spare_memory` gives it back.

    By default, glibc gives large blocks back to the system, which must then clear each page again: half of the CPU time
    of training a large network. Nothing changes with other allocators, or if environment variables choose otherwise.
    """
    library = _allocator()
    if library is not None and not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        library.mallopt(MAP_THRESHOLD, LARGEST_BLOCK)
        library.mallopt(TRIM_THRESHOLD, NEVER)


def spare_memory() -> None:
    """Give freed memory back to the system if this process has taken much of the machine's since it last did.

    To be called between activities: tensors of other shapes may not fit into what the last one has freed.
    """
    library = _allocator()
    if library is None:
        return
    most = HELD_SHARE * memory_bytes() / (os.cpu_count() or 1)  # there may be a worker for each core
    if _held_bytes() - _HELD_AFTER.get("trim", 0) > most:
        library.malloc_trim(0)
        _HELD_AFTER["trim"] = _held_bytes()


def _held_bytes() -> int:
    """Return the memory of this process that is in RAM, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _allocator() -> ctypes.CDLL | None:
    """Return the C library if it is glibc, else None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
