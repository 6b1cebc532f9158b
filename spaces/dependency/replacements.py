"""Try other modules in place of layers, and the network without its branches."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spaces.dependency.comparing import difference, light_copy
from spaces.network.layers import computes_as_torch, has_plain_weight, replace_module
from spaces.network.messages import first_line
from spaces.network.omission import leave_out
from spaces.network.statistics import reestimate
from spaces.network.tensors import run, seeded_outputs, tensors
from spaces.network.tried_layer import TriedLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spaces.network.anatomy import Branch
    from spaces.network.tensors import Inputs

# reasons of refusals
COMPUTED_WEIGHT = (
    "its weight is computed in every forward pass; torch.nn.utils.parametrize.remove_parametrizations makes it a "
    "parameter"
)
REPLACEMENT_TRIED = "another module was put in its place, but"


def irreplaceable_layers(model: nn.Module, example: Inputs, names: Sequence[str]) -> dict[str, str]:
    """Return the layers that cannot be replaced by a factorized or quantized one, and why.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        One input, shape (1, ...).
    names
        Names of convolutions and linear layers.
    """
    reasons = {name: COMPUTED_WEIGHT for name in names if not has_plain_weight(model.get_submodule(name))}
    others = [name for name in names if name not in reasons]
    reasons |= _custom_forwards(model, example, others)
    others = [name for name in names if name not in reasons]
    expected = seeded_outputs(light_copy(model), example)
    parts = [others]
    while parts:
        part = parts.pop()
        reason = _error_of_replacement(model, example, part, expected) if part else None
        if reason and len(part) == 1:
            reasons[part[0]] = f"{REPLACEMENT_TRIED} {reason}"
        elif reason:
            half = len(part) // 2
            parts += [part[:half], part[half:]]
    return reasons


def _custom_forwards(model: nn.Module, example: Inputs, names: Sequence[str]) -> dict[str, str]:
    """Return the layers whose class computes something else than torch's, seen at the outputs of the layers.

    The outputs of the network would not reveal a layer that hardly changes them.
    """
    custom = [name for name in names if not computes_as_torch(model.get_submodule(name))]
    if not custom:
        return {}
    reasons: dict[str, str] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if inputs and isinstance(output, Tensor):
            try:
                reason = difference([TriedLayer(layer)(inputs[0])], [output])
            except Exception as error:  # noqa: BLE001 - a layer that pads its input first may not run without
                reason = f"it fails: {first_line(error)}"
            if reason:
                reasons[names_of[layer]] = f"{REPLACEMENT_TRIED} {reason}"

    watched = light_copy(model)
    names_of = {watched.get_submodule(name): name for name in custom}
    for layer in names_of:
        layer.register_forward_hook(note)
    seeded_outputs(watched, example)
    return reasons


def _error_of_replacement(
    model: nn.Module, example: Inputs, names: Sequence[str], expected: list[Tensor]
) -> str | None:
    """Replace these layers by other modules; return what is wrong with the outputs, or None."""
    changed = light_copy(model)
    for name in names:
        replace_module(changed, name, TriedLayer(changed.get_submodule(name)))
    try:
        outputs = seeded_outputs(changed, example)
        new_nan = any(bool(x.isnan().any() and not y.isnan().any()) for x, y in zip(outputs, expected, strict=True))
        return "the forward reads its weight" if new_nan else difference(outputs, expected)
    except Exception as error:  # noqa: BLE001 - a network that reads attributes of its layers may raise anything
        return f"the forward pass failed: {first_line(error)}"


def removable_branches(model: nn.Module, example: Inputs, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Return the branches without which the network runs in evaluation mode, with finite outputs of the same shape.

    Others fail: a norm of a custom class may take further inputs or change the shape; code may read a weight of the
    branch, or divide by its output.
    """
    if not branches:
        return ()
    with torch.no_grad():
        shapes = [x.shape for x in tensors(run(model, example))]

    def runs_without(some: tuple[Branch, ...]) -> bool:
        try:
            shallower = copy.deepcopy(model)
            for branch in some:
                leave_out(shallower, branch)
            reestimate(shallower, example)
            with torch.no_grad():
                outputs = tensors(run(shallower.eval(), example))
        except Exception:  # noqa: BLE001 - code that needs the branch may raise anything
            return False
        return [x.shape for x in outputs] == shapes and all(bool(x.isfinite().all()) for x in outputs)

    return branches if runs_without(branches) else tuple(branch for branch in branches if runs_without((branch,)))
