"""An objective as a user would write it: energy by a formula over layers, so that it is exact before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from objectives.finished_layers import layers_in

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from objectives.layers import Parts
    from objectives.objective import Direction

MULTIPLY_NJ = 4.6e-3 / 32**2  # nanojoules of a multiply-add, for each bit of one operand and each bit of the other
FETCH_NJ = 20e-3  # nanojoules to read 32 bits of a weight from memory


@dataclass(frozen=True, slots=True, repr=False)
class Energy:
    """Energy of one example in nanojoules: of multiply-adds, by their bit widths, and of reading the weights."""

    example: Tensor
    name: ClassVar[str] = "energy_nanojoules"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        return float(self.foreseen(layers_in(model, self.example))[0])

    def foreseen(self, parts: Parts) -> np.ndarray:
        computed = (parts.macs * parts.weight_bits * parts.activation_bits).sum((0, 2)) * MULTIPLY_NJ
        fetched = (parts.weights * parts.weight_bits).sum((0, 2)) / 32 * FETCH_NJ
        total: np.ndarray = computed + fetched + parts.product_macs * 32**2 * MULTIPLY_NJ
        return total

    def __repr__(self) -> str:
        return f"Energy({tuple(self.example.shape[1:])})"
