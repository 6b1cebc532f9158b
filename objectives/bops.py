"""Bit operations: multiply-adds times the bit widths of their operands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from objectives.layers import FLOAT_BITS, LowPrecision
from objectives.mac_counter import count
from objectives.trees import one_shape

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from objectives.layers import Parts
    from objectives.objective import Direction
    from objectives.trees import Tree


@dataclass(frozen=True, slots=True, repr=False)
class Bops:
    """Multiply-adds of one example times the bits of weight and input (Baskin et al. 2018, arXiv:1804.10969, §3).

    Parameters
    ----------
    example
        Inputs, shape (B, ...); the first is used.
    """

    example: Tree
    name: ClassVar[str] = "bops"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the count; an operand that is not quantized counts 32 bits."""
        macs = count(model, self.example)
        total = macs[""] * FLOAT_BITS**2
        for name, module in model.named_modules():
            if isinstance(module, LowPrecision):
                total += macs[name] * (module.weight_bits * module.activation_bits - FLOAT_BITS**2)
        return float(total)

    def foreseen(self, parts: Parts) -> np.ndarray:
        """Return the multiply-adds times the widths of their operands, in layers and in products."""
        in_layers = (parts.macs * (parts.weight_bits * parts.activation_bits).astype(float)).sum((0, 2))
        total: np.ndarray = in_layers + parts.product_macs * FLOAT_BITS**2
        return total

    def __repr__(self) -> str:
        """Return a text with the shape of one example."""
        return f"Bops({one_shape(self.example, 1)})"
