"""The entry points of a file: one for each size of its images, all with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from objectives.runtimes.ends import WithEnds
from objectives.runtimes.image_sizes import resized, size_words
from objectives.runtimes.passes.ranges import RANGE_INPUTS
from objectives.runtimes.runtime import Runtime
from objectives.trees import at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from objectives.runtimes.image_sizes import Size
    from objectives.trees import Tree


@runtime_checkable
class HasSignatures(Runtime, Protocol):
    """A runtime whose files may have several entry points; a loaded file finds that of its inputs by their shapes."""

    @property
    def signature_call(self) -> str:
        """The lines of Python that call the entry point ``$name`` of a file."""
        ...

    def signatures_of(self, path: Path) -> list[str]:
        """Return the names of the entry points of a file, that of the network's own size first."""
        ...


def signature_name(size: Size) -> str:
    """Return the name of the entry point for images of a size: ``forward_96x128``, height x width."""
    return f"forward_{size_words(size)}"


def entries(model: nn.Module, example: Tree, first: str) -> Iterator[tuple[str, Tree]]:
    """Yield the name of each entry point of a file, and calibration inputs of its size.

    Parameters
    ----------
    model, example
        What is exported, and inputs of the file.
    first
        The name of that which takes inputs as they are.
    """
    yield first, example
    if isinstance(model, WithEnds):
        few = at(example, slice(RANGE_INPUTS))
        for size in model.form.sizes:
            yield signature_name(size), resized(few, size, channels_last=model.form.last_in_file)
