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
from spaces.network.unread_layers import calls_read, unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from spaces.network.anatomy import Extent, Group, Layer
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
    every = layers_of(traced, example)
    read = calls_read(traced, example)
    idle = frozenset(unread(read))
    layers = tuple(layer for layer in every if layer.name not in idle)
    reasons = irreplaceable_layers(traced, example, [layer.name for layer in layers if not layer.tied])
    layers = tuple(replace(layer, stays=reasons.get(layer.name, "")) for layer in layers)
    # layers that nothing reads lose channels with those around them, or the network would not run
    groups, refusals, products = _without(idle, *channel_groups(traced, example, tuple(layer.name for layer in every)))
    layer_names = {layer.name for layer in layers}
    others = tuple(
        (name, type(module).__name__)
        for name, module in traced.named_modules()
        if name not in layer_names and any(True for _ in module.parameters(recurse=False))
    )
    kept = tuple(Refusal(name, reason) for name, reason in kept_recurrence(traced, example).items())
    branches = removable_branches(traced, example, branches_of(traced, example, layers, groups))
    branches = tuple(branch for branch in branches if idle.isdisjoint(branch.others))
    layers = tuple(_with_runs_read(layer, read.get(layer.name, ())) for layer in layers)
    names = tuple(layer.name for layer in every if layer.name in idle)
    return Anatomy(layers, groups, refusals + kept, others, products, branches, unread=names)


def _without(
    idle: frozenset[str], groups: Iterable[Group], refusals: Iterable[Refusal], products: Iterable[Extent]
) -> tuple[tuple[Group, ...], tuple[Refusal, ...], tuple[Extent, ...]]:
    """Return the groups that layers read by an output produce, and what is said of layers that none reads."""
    kept = tuple(group for group in groups if not idle.issuperset(group.producers))
    names = {group.name for group in kept}
    shrinking = (replace(one, cuts=tuple(cut for cut in one.cuts if cut[1] in names)) for one in products)
    said = tuple(one for one in refusals if one.layer not in idle)
    said += tuple(Refusal(name, "no output depends on it, so it is left as it is") for name in sorted(idle))
    return kept, said, tuple(one for one in shrinking if one.cuts)


def _with_runs_read(layer: Layer, read: tuple[bool, ...]) -> Layer:
    """Return a layer with those of its calls on which an output depends; with all where that is not known."""
    if len(read) != len(layer.runs):
        return layer
    return replace(layer, runs=tuple(run for run, is_read in zip(layer.runs, read, strict=True) if is_read))
