"""What boards without an operating system need: the RAM of a network, and its file as source."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from objectives.layers import inputs_of_file
from objectives.outputs import device_of
from objectives.runtimes.litert.micro import TfliteMicro
from objectives.runtimes.runtime import Runtime
from objectives.trees import moved, one_shape

if TYPE_CHECKING:
    from torch import nn

    from objectives.objective import Direction
    from objectives.trees import Tree


@runtime_checkable
class HasArena(Runtime, Protocol):
    """A runtime whose interpreter takes all its memory from one arena."""

    def arena_bytes(self, path: Path) -> int:
        """Return the bytes of RAM that the interpreter needs for a file."""
        ...


@runtime_checkable
class HasSource(Runtime, Protocol):
    """A runtime of devices without a file system, into whose programs a file is compiled."""

    def c_source(self, path: Path) -> str:
        """Return a file as C++ source."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ArenaBytes:
    """Bytes of RAM that TFLite Micro needs for one inference, measured on the exported file.

    Each network is exported for it, which takes seconds. A search measures some networks first and predicts the others,
    as it does for latency.

    Parameters
    ----------
    example
        Calibration inputs, shape (B, ...).
    runtime
        The runtime.
    """

    example: Tree
    runtime: HasArena = field(default_factory=TfliteMicro)
    name: ClassVar[str] = "arena_bytes"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the bytes for a finished network, in evaluation mode."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model.{self.runtime.suffix}"
            self.runtime.export(model, moved(inputs_of_file(model, self.example), device_of(model)), path)
            return float(self.runtime.arena_bytes(path))

    def __repr__(self) -> str:
        """Return a text with all that the value depends on, without tensors or addresses."""
        return f"ArenaBytes({one_shape(self.example)}, {self.runtime!r})"
