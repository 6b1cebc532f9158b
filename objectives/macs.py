"""Multiply-adds of a network as an objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from objectives.mac_counter import count
from objectives.trees import one_shape

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from objectives.layers import Parts
    from objectives.objective import Direction
    from objectives.trees import Tree


@dataclass(frozen=True, slots=True, repr=False)
class Macs:
    """Multiply-adds of one example in convolutions, linear layers and matrix products; each counts 1, not 2.

    Parameters
    ----------
    example
        Inputs, shape (B, ...); the first is used.
    """

    example: Tree
    name: ClassVar[str] = "macs"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the count."""
        return float(count(model, self.example)[""])

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the sum over the parts and the matrix products."""
        total: np.ndarray = parts.macs.sum((0, 2)) + parts.product_macs
        return total

    def __repr__(self) -> str:
        """Return a text with the shape of one example."""
        return f"Macs({one_shape(self.example, 1)})"
