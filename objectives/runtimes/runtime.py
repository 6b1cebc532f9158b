"""What executes an exported file, as the objectives see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn


class ExportError(ValueError):
    """A model that a runtime cannot take; the text is one line that names the operator or the reason."""


class Runtime(Protocol):
    """Something that stores a finished model in a file, and executes that file.

    Members are read-only, so that a frozen dataclass is a runtime.
    """

    @property
    def name(self) -> str:
        """One lower-case word: the ending of its files, and its name in tables."""
        ...

    @property
    def threads(self) -> int:
        """Threads of one inference."""
        ...

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """Widths of weights that the file packs, ascending; 32 is always possible and not listed."""
        ...

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """Widths of activations that the runtime executes as asked; 32 is always possible and not listed."""
        ...

    def export(self, model: nn.Module, example: Tensor, path: Path) -> None:
        """Write ``model`` to ``path``.

        Parameters
        ----------
        model
            A finished model in eval mode; it is not changed.
        example
            A batch of inputs; only its shape behind the batch and its dtype count.
        path
            The file to write; its folder must exist.

        Raises
        ------
        ExportError
            If the model has no form in this runtime.
        """
        ...

    def load(self, path: Path) -> Callable[[Tensor], Tensor]:
        """Return a function that executes the file at ``path`` on a CPU batch of any size."""
        ...
