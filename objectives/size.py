"""How many bytes the exported file will have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from objectives.layers import LowPrecision

if TYPE_CHECKING:
    from torch import nn

    from objectives.objective import Direction

GRAPH_BYTES = 400


@dataclass(frozen=True, slots=True)
class SizeBytes:
    """Predicted."""

    name: ClassVar[str] = "size_bytes"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True

    def __call__(self, model: nn.Module) -> float:
        """Return the prediction."""
        total = float(GRAPH_BYTES)
        for module in model.modules():
            for _, parameter in module.named_parameters(recurse=False):
                bits = module.weight_bits if isinstance(module, LowPrecision) else 32
                total += math.ceil(parameter.numel() * bits / 8) + 60
        return total
