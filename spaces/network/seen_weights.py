"""Layers whose own forward computes their weight in every pass, such as standardized convolutions, made plain ones.

They are classes derived from torch's layers, or modules with a weight of their own, as layers with equalized learning
rates often are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from spaces.network.layers import (
    CONVOLUTIONS,
    LAYER_TYPES,
    computes_as_torch,
    has_plain_weight,
    linear_of,
)
from spaces.network.own_layers import Calls, convolution_of
from spaces.network.rewriting import modules_to_rewrite, seen_in_calls, with_layers
from spaces.network.separate_padding import alone, near, paddings_to_try, plain_convolution

if TYPE_CHECKING:
    from spaces.network.tensors import Inputs


def with_seen_weights(model: nn.Module, example: Inputs) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a network with the same outputs in which such layers are torch's own, and a sentence about it.

    A layer is replaced if it uses one weight for all inputs, in training too, and does nothing else but pad its inputs
    with zeros.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...).
    """
    names = modules_to_rewrite(model, _may_compute_its_weight)
    seen = seen_in_calls(model, example, names, _plain) if names else {}
    plain = {name: calls[0] for name, calls in seen.items() if len(calls) == 1 and calls[0] is not None}
    new = with_layers(model, example, names, plain)
    kinds = {
        type(model.get_submodule(name)).__name__
        for name in plain
        if type(new.get_submodule(name)) is not type(model.get_submodule(name))
    }
    what = " and ".join(sorted(kinds))
    note = f"the weights that layers of {what} compute in every pass are stored; candidates train these"
    return new, (note,) if kinds else ()


def _may_compute_its_weight(module: nn.Module) -> bool:
    """Whether the module has a weight and a forward of its own: a layer, or a module of another class."""
    if isinstance(module, LAYER_TYPES):
        known = isinstance(module, (*CONVOLUTIONS, nn.Linear))
        return known and not computes_as_torch(module) and has_plain_weight(module)
    holds = any(one.dim() > 1 for one in module.parameters(recurse=False))
    return holds and not type(module).__module__.startswith("torch.") and not any(True for _ in module.children())


def _plain(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> nn.Module | None:
    """Return a plain layer that computes what the module computes for noise, in evaluation and in training."""
    (inputs, *_) = given
    dice = torch.Generator().manual_seed(0)
    noises = [torch.randn(inputs.shape, generator=dice, dtype=inputs.dtype).to(inputs.device) for _ in range(2)]
    computed, used = [], []
    for noise in noises:
        for training in (False, True):
            with torch.no_grad(), Calls() as calls:
                computed.append(alone(module, noise, training=training))
            used += calls.used
    first = used[0]
    if len(used) != len(computed) or not all(_same(first.weight, one.weight) for one in used):
        return None
    if any((one.bias is None) != (first.bias is None) for one in used) or isinstance(first.weight, nn.Parameter):
        return None
    weight, bias = nn.Parameter(first.weight.clone()), None if first.bias is None else nn.Parameter(first.bias.clone())
    options: list[nn.Module]
    if first.function is F.linear:
        options = [linear_of(weight, bias)]
    elif isinstance(module, CONVOLUTIONS):
        paddings = paddings_to_try(module, inputs.shape, output.shape)
        options = [plain_convolution(module, pads, weight, bias) for pads in paddings]
    else:
        layer = convolution_of(first)
        layer.register_parameter("weight", weight)
        layer.register_parameter("bias", bias)
        options = [layer]
    expected = list(zip(noises, computed[::2], computed[1::2], strict=True))
    for option in options:
        answers = [(option(noise), *both) for noise, *both in expected]
        if all(ours.shape == theirs.shape and near(ours, theirs) for ours, *both in answers for theirs in both):
            return option.train(module.training)
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
