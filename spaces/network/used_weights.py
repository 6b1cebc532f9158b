"""The matrices by which linear layers multiply, also where factors or layers with rounded weights replace them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

# saved multiply-adds of a step above which a loop is faster: measured in ONNX Runtime, LSTM and GRU of 64 to 384 units
MACS_OF_LOOP = 150_000
Layer = Callable[[Tensor], Tensor]


@runtime_checkable
class HasWeight(Protocol):
    """A module in place of a linear layer that still multiplies its input by one matrix."""

    def used_weight(self) -> Tensor | None:
        """Return the matrix, shape (outputs, inputs); None if the module does more, such as rounding its inputs."""
        ...


def used_weight(layer: nn.Module) -> Tensor | None:
    """Return the matrix by which a layer multiplies its input; None if it does something else."""
    if type(layer) is nn.Linear:
        return layer.weight
    return layer.used_weight() if isinstance(layer, HasWeight) else None


def whole_weight(layer: nn.Module) -> Tensor | None:
    """Return the matrix of a layer, or the product of its factors where the product costs less than a loop does."""
    weights = [weight for factor in factors_of(layer) if (weight := used_weight(factor)) is not None]
    if len(weights) < len(factors_of(layer)):
        return None
    more = len(weights[-1]) * weights[0].shape[1] - sum(weight.numel() for weight in weights)
    return functools.reduce(lambda product, weight: weight @ product, weights) if more <= MACS_OF_LOOP else None


def linear_in(layer: nn.Module) -> nn.Linear:
    """Return the first linear layer of what replaces a linear layer."""
    return next(module for module in layer.modules() if isinstance(module, nn.Linear))


def factors_of(layer: nn.Module) -> list[nn.Module]:
    """Return the factors of a layer, or the layer itself."""
    return list(layer.children()) if isinstance(layer, nn.Sequential) else [layer]


def unpacked(layer: nn.Module) -> Layer:
    """Return a function that computes what a layer or its factors compute, from weights that are unpacked already."""
    factors = factors_of(layer)
    weights = [used_weight(factor) for factor in factors]
    biases = [linear_in(factor).bias for factor in factors]

    def run(x: Tensor) -> Tensor:
        for factor, weight, bias in zip(factors, weights, biases, strict=True):
            x = factor(x) if weight is None else F.linear(x, weight, bias)
        return x

    return run
