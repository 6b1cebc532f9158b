"""Trace a network once: its layers, groups of channels, and branches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spaces.dependency.branches import branches_of
from spaces.dependency.groups import channel_groups
from spaces.dependency.replacements import irreplaceable_layers, removable_branches
from spaces.network.anatomy import Anatomy, Refusal
from spaces.network.cache import cached
from spaces.network.copying import compressible_copy
from spaces.network.layer_runs import layers_of
from spaces.network.tensors import moved, shapes_of, some
from spaces.network.unfolded_recurrence import kept_recurrence

if TYPE_CHECKING:
    from torch import nn

    from spaces.network.tensors import Inputs


def trace(model: nn.Module, example: Inputs) -> Anatomy:
    """Return the anatomy of `model`, traced on one example and cached until its weights change.

    Parameters
    ----------
    model
        Any network. It is not changed.
    example
        A batch of inputs, shape (B, ...), or several in a tuple or dict; only the first example is used.

    Raises
    ------
    ValueError
        If the forward pass fails on the example.
    """
    return cached(model, _key(example), lambda: _anatomy(model, some(example, slice(1))))


def known_anatomy(model: nn.Module, example: Inputs, anatomy: Anatomy) -> None:
    """Let `trace` return this anatomy for a network that is known to have it, without tracing it again."""
    cached(model, _key(example), lambda: anatomy)


def _key(example: Inputs) -> tuple[str, tuple[tuple[int, ...], ...]]:
    return "anatomy", shapes_of(example)


def _anatomy(model: nn.Module, example: Inputs) -> Anatomy:
    # the anatomy is the same on every device
    traced, example = compressible_copy(model).eval().cpu(), moved(example, "cpu")
    layers = layers_of(traced, example)
    reasons = irreplaceable_layers(traced, example, [layer.name for layer in layers if not layer.tied])
    layers = tuple(replace(layer, stays=reasons.get(layer.name, "")) for layer in layers)
    groups, refusals, products = channel_groups(traced, example, tuple(layer.name for layer in layers))
    layer_names = {layer.name for layer in layers}
    others = tuple(
        (name, type(module).__name__)
        for name, module in traced.named_modules()
        if name not in layer_names and any(True for _ in module.parameters(recurse=False))
    )
    kept = tuple(Refusal(name, reason) for name, reason in kept_recurrence(traced, example).items())
    branches = removable_branches(traced, example, branches_of(traced, example, layers, groups))
    return Anatomy(layers, groups, refusals + kept, others, products, branches)
