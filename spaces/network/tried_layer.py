"""The module that is put in the place of a layer to find out whether another one may be there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spaces.network.layers import run_layer
from spaces.network.stand_ins import StandIn


class TriedLayer(StandIn):
    """A module of another class that computes what torch's layer of this type computes.

    Its first parameter is of integers, as those of packed layers are, and its weight is nan to a reader from outside.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.get_parameter("weight")
        self.codes = nn.Parameter(torch.zeros(1, dtype=torch.int8, device=weight.device), requires_grad=False)
        self.inner = layer
        self.stand_for(layer, "inner")

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the signature of torch
        """Return an attribute of the layer."""
        value = super().__getattr__(name)
        return torch.full_like(value, torch.nan) if name == "weight" else value

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the layer."""
        return run_layer(self.inner, inputs, self.inner.get_parameter("weight"))
