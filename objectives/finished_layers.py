"""The layers of a finished network as arrays, so that a cost is written once: as a formula over layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from objectives.layers import FLOAT_BITS, LeftOut, LowPrecision, resizes_in_file
from objectives.mac_counter import count

CONVOLUTION_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True)
class FinishedLayers:
    """The layers of one network; the attributes are those of `objectives.layers.Parts`, shapes (1, 1, L) or (1,)."""

    macs: np.ndarray
    weights: np.ndarray
    biases: np.ndarray
    outputs: np.ndarray
    inputs: np.ndarray
    weight_bits: np.ndarray
    activation_bits: np.ndarray
    levels: np.ndarray
    linear: np.ndarray
    padded: np.ndarray
    strided: np.ndarray
    grouped: np.ndarray
    product_macs: np.ndarray
    parameters: np.ndarray
    held: np.ndarray
    sums: np.ndarray
    resized: np.ndarray


def layers_in(model: nn.Module, example: Tensor) -> FinishedLayers:
    """Return the layers of a finished network as arrays.

    With it an objective measures a network by the same formula that predicts its cost from shapes:

        def foreseen(self, parts): return (parts.macs * NANOJOULES).sum((0, 2))
        def __call__(self, model): return float(self.foreseen(layers_in(model, self.example))[0])

    Parameters
    ----------
    model
        As `spaces.deployed` returns it.
    example
        Inputs, shape (B, ...); the first is used to count multiply-adds.
    """
    macs, wrapped = count(model, example), wrapped_in(model)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LowPrecision) or (is_layer(module) and id(module) not in wrapped)
    }
    rows = [(float(macs[name]), *_numbers(module)) for name, module in found.items()]
    owned = {id(parameter) for module in found.values() for parameter in module.parameters()}
    others = [parameter.numel() for parameter in model.parameters() if id(parameter) not in owned]
    left_out = sum(module.sums_left_out for module in model.modules() if isinstance(module, LeftOut))
    # outside of layers
    totals = macs[""] - sum(macs[name] for name in found), sum(others), len(others), -left_out, resizes_in_file(model)
    return FinishedLayers(
        *(np.array(column)[None, None] for column in zip(*rows, strict=True)),
        *(np.array([float(total)]) for total in totals),
    )


def wrapped_in(model: nn.Module) -> set[int]:
    """Return the ids of the modules that belong to a layer with a quantized weight or input."""
    return {id(child) for module in model.modules() if isinstance(module, LowPrecision) for child in module.children()}


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a convolution or a linear layer."""
    return isinstance(module, (*CONVOLUTION_KINDS, nn.Linear))


def _numbers(module: nn.Module) -> tuple[float, ...]:
    """Return the numbers of one layer, in the order of the attributes of `FinishedLayers` after the multiply-adds."""
    layer: Any = next(iter(module.children())) if isinstance(module, LowPrecision) else module
    sizes = {name.rpartition(".")[2]: parameter.numel() for name, parameter in module.named_parameters()}
    weight_bits, activation_bits, levels = FLOAT_BITS, FLOAT_BITS, 0
    if isinstance(module, LowPrecision):
        weight_bits, activation_bits = module.weight_bits, module.activation_bits
        levels = module.get_buffer("levels").numel() if "codes" in sizes else 0
    weights = sizes.get("codes", sizes.get("weight", 0))
    if isinstance(layer, nn.Linear):
        shape, flags = (layer.out_features, layer.in_features), (1.0, 0.0, 0.0, 0.0)
    else:
        padded = layer.padding == "same" or (not isinstance(layer.padding, str) and any(layer.padding))
        shape = layer.out_channels, layer.in_channels // layer.groups
        flags = 0.0, float(padded), float(max(layer.stride) > 1), float(layer.groups > 1)
    return (float(weights), float(sizes.get("bias", 0)), *shape, weight_bits, activation_bits, levels, *flags)
