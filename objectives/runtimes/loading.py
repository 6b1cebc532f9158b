"""Lines of code that load a file and run it, in the languages of a runtime, for the card beside an export."""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from objectives.runtimes.runtime import Runtime
from objectives.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Mapping

    from objectives.trees import Tree


@runtime_checkable
class HasLoading(Runtime, Protocol):
    """A runtime that shows how its files are loaded."""

    @property
    def loading(self) -> Mapping[str, str]:
        """The lines by language, such as ``python``; with names in them that `filled` replaces."""
        ...


def filled(code: str, inputs: Tree, arena: int = 0, name: str = "") -> str:
    """Return lines for inputs of one example; their first one gives the shape where a language shows one alone.

    Parameters
    ----------
    code
        The lines, in which ``$shape`` is replaced by sizes such as ``1, 3, 32, 32``, ``$shapes`` by a list of those of
        all inputs, ``$zeros`` by tensors of torch, ``$arena`` by bytes of RAM, and ``$name`` by that of an entry point.
    inputs
        Inputs of the file.
    arena
        Bytes of RAM, for TFLite Micro.
    name
        The name of an entry point; see `objectives.runtimes.signatures`.
    """
    tensors = leaves(inputs)
    zeros = ", ".join(f"torch.zeros({', '.join(map(str, one.shape))}, dtype={one.dtype})" for one in tensors)
    shape, shapes = ", ".join(map(str, tensors[0].shape)), [list(one.shape) for one in tensors]
    return Template(code).substitute(shape=shape, shapes=shapes, zeros=zeros, arena=arena, name=name).strip()
