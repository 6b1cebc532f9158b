"""A network with other weights, in which no wrong cut stays unseen."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spaces.network.layers import EMBEDDINGS, LAYER_TYPES
from spaces.network.tensors import seeded_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces.network.tensors import Inputs

SEED = 0
LEAST_DEVIATION = 1e-12


def redrawn(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a copy whose weights are drawn anew, so that all layers matter, with outputs of standard deviation 1.

    Small weights hide what a cut does to attention, zeros hide a whole branch, and equal weights of a norm hide which
    of them were cut. Whether a group can be cut does not depend on the weights. Where the outputs with other weights
    are not finite, the copy keeps those of the network.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    """
    drawn, random = copy.deepcopy(model), torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for module in drawn.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.copy_(_values(module, name, parameter, random))
            for name, buffer in module.named_buffers(recurse=False):
                if name in {"running_mean", "running_var"}:
                    buffer.copy_(_between(0.5, 1.5, buffer, random))
    scaled: set[int] = set()
    handles = [
        layer.register_forward_hook(_scale(scaled)) for layer in drawn.modules() if isinstance(layer, LAYER_TYPES)
    ]
    try:
        outputs = seeded_outputs(drawn, example)
    except Exception:  # noqa: BLE001 - code that reads its weights may raise anything
        return copy.deepcopy(model)
    finally:
        for handle in handles:
            handle.remove()
    good = all(bool(output.isfinite().all()) for output in outputs) and any(bool(output.any()) for output in outputs)
    return drawn if good else copy.deepcopy(model)


def _values(module: nn.Module, name: str, parameter: Tensor, random: torch.Generator) -> Tensor:
    """Return numbers around 0 for matrices, tables and biases, and around 1 for scales."""
    if name == "bias" or sum(size > 1 for size in parameter.shape) > 1 or isinstance(module, EMBEDDINGS):
        values = torch.randn(parameter.shape, generator=random)
        width = math.prod(parameter.shape[1:]) if isinstance(module, LAYER_TYPES) and parameter.dim() > 1 else 1
        return values / math.sqrt(max(width, 1))
    return _between(0.5, 1.5, parameter, random)


def _between(low: float, high: float, like: Tensor, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=random)


def _scale(scaled: set[int]) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
    """Return a hook that divides the weights of a layer by the deviation of its first outputs."""

    def scale(layer: nn.Module, _: tuple[Any, ...], output: Any) -> Tensor | None:  # noqa: ANN401
        own = dict(layer.named_parameters(recurse=False))
        if not isinstance(output, Tensor) or "weight" not in own or scaled & {id(p) for p in own.values()}:
            return None
        deviation = output.std() if output.numel() > 1 else output.abs().max()
        if not bool(deviation > LEAST_DEVIATION):
            return None
        scaled.update(id(parameter) for parameter in own.values())
        for parameter in own.values():
            parameter.div_(deviation)
        return output / deviation

    return scale
