"""Weights that are computed in every forward pass, as by weight_norm, made plain parameters."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from spaces.network.messages import number_of


def store_computed_weights(model: nn.Module) -> tuple[str, ...]:
    """Replace computed weights by their values, in place; return sentences about it for the user.

    These are the parametrizations of torch, the older weight_norm and spectral_norm, and the masks of
    `torch.nn.utils.prune`. A parametrization that computes another weight in every call, such as a random one, stays.

    Parameters
    ----------
    model
        A network in evaluation mode.
    """
    found: Counter[str] = Counter()
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):  # noqa: SLF001 - where the older functions are kept
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
                found["weight_norm"] += 1
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
                found["spectral_norm"] += 1
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # noqa: SLF001 - the only place of the name
                found["a mask of torch.nn.utils.prune"] += 1
        if parametrize.is_parametrized(module):
            _store(module, found)
    return tuple(
        f"{what} of {number_of(count, 'layer')} is stored in the weights, which candidates train without it"
        for what, count in found.items()
    )


def _store(module: nn.Module, found: Counter[str]) -> None:
    """Store the weights of a module that has parametrizations, and count these."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    for name in list(parametrizations):
        kinds = " of ".join(type(kind).__name__.lstrip("_") for kind in parametrizations[name].children())
        with torch.no_grad():
            once, again = getattr(module, name), getattr(module, name)
        if torch.equal(once, again):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            found[kinds] += 1
