"""The number of parameters of a network."""

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
    """Number of weights and biases of the finished network, at any bit width; a folded BatchNorm counts as its bias."""

    name: ClassVar[str] = "parameters"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the count."""
        return float(sum(parameter.numel() for parameter in model.parameters()))

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the number of weights and biases, in layers and outside of them."""
        total: np.ndarray = (parts.weights + parts.biases).sum((0, 2)) + parts.parameters
        return total
