"""How many numbers the network holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from objectives.layers import Parts
    from objectives.objective import Direction


@dataclass(frozen=True, slots=True)
class Parameters:
    """Weights and biases of the finished network, whatever their width; a folded BatchNorm counts as its bias."""

    name: ClassVar[str] = "parameters"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the count."""
        return float(sum(parameter.numel() for parameter in model.parameters()))

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return weights and biases."""
        total: np.ndarray = (parts.weights + parts.biases).sum((0, 2)) + parts.parameters
        return total
