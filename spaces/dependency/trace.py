"""Look at a network once: which layers ran, on what, and which channels belong together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spaces.dependency.branches import branches_of
from spaces.dependency.checks import dispensable, irreplaceable
from spaces.dependency.groups import channel_groups
from spaces.network.anatomy import Anatomy
from spaces.network.cache import cached
from spaces.network.copying import compressible_copy
from spaces.network.layer_runs import layers_of

if TYPE_CHECKING:
    from torch import Tensor, nn


def trace(model: nn.Module, example: Tensor) -> Anatomy:
    """Return the anatomy of `model`, traced on one example and remembered as long as the model lives.

    Parameters
    ----------
    model
        Any network that takes one tensor. It is not changed.
    example
        A batch of inputs, shape (B, ...); only the first is used.

    Raises
    ------
    ValueError
        If the forward pass fails on the example.
    """
    return cached(model, ("anatomy", tuple(example.shape[1:])), lambda: _look(model, example[:1]))


def _look(model: nn.Module, example: Tensor) -> Anatomy:
    seen, example = compressible_copy(model).eval().cpu(), example.cpu()  # structure is the same on every device
    layers = layers_of(seen, example)
    stays = irreplaceable(seen, example, [layer.name for layer in layers if not layer.tied])
    layers = tuple(replace(layer, stays=stays.get(layer.name, "")) for layer in layers)
    groups, refusals, products = channel_groups(seen, example, tuple(layer.name for layer in layers))
    weighted = {layer.name for layer in layers}
    others = tuple(
        (name, type(module).__name__)
        for name, module in seen.named_modules()
        if name not in weighted and any(True for _ in module.parameters(recurse=False))
    )
    branches = dispensable(seen, example, branches_of(seen, example, layers, groups))
    return Anatomy(layers, groups, refusals, others, products, branches)
