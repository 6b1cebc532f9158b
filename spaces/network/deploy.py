"""From the network that was trained to the one that is shipped: BatchNorm folded, integers packed.

Per-channel symmetric codes survive the folding unchanged: a BatchNorm multiplies every output channel by one number,
and so does the scale. What is measured, exported and verified is this form.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spaces.network.layers import BATCH_NORMS, LAYER_TYPES, is_plain_norm, replace_module, scale_outputs, without_norm
from spaces.network.statistics import forward_in_eval

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = 1e-3  # relative; folding only reorders roundings, which a hundred layers make larger


@runtime_checkable
class TrainingForm(Protocol):
    """A module that stands for one layer while it is trained and is shipped in another form, such as integers."""

    layer: nn.Module

    def scale_outputs(self, gain: Tensor) -> None:
        """Multiply each output channel by its gain, shape (O,), in place; the bias of the layer stays."""
        ...

    def stop_rounding_inputs(self) -> None:
        """Take the inputs as they are from now on, so that two networks can be compared digit by digit."""
        ...

    def shipped(self) -> nn.Module:
        """Return the form that is shipped; this one cannot be used any more."""
        ...


def deployed(model: nn.Module, example: Tensor) -> nn.Module:
    """Return the finished network in evaluation mode; `model` is not changed.

    Parameters
    ----------
    model
        A trained network, with or without modules of a `TrainingForm`.
    example
        A batch of inputs, shape (B, ...): which BatchNorm follows which convolution is seen on it, and that the folded
        network answers as the unfolded one is checked on it.
    """
    seen = example[:2]
    finished = copy.deepcopy(model).eval()
    finished = _folded_where_alike(finished, _pairs(finished, seen), seen)
    for name, module in list(finished.named_modules()):
        if isinstance(module, TrainingForm):
            replace_module(finished, name, module.shipped().eval())
    return finished


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Find the BatchNorms whose input is the very output of a convolution, each used once."""
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def produce(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            made[id(output)] = name, output  # holding the tensor keeps its id from being given to another

        return note

    def consume(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if id(inputs[0]) in made and is_plain_norm(norm, inputs[0], output):
                pairs.append((made[id(inputs[0])][0], name))

        return note

    inner = {f"{name}.layer" for name, module in model.named_modules() if isinstance(module, TrainingForm)}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (*LAYER_TYPES, TrainingForm)) and name not in inner:
            assert isinstance(module, nn.Module)
            handles.append(module.register_forward_hook(produce(name)))
        elif isinstance(module, BATCH_NORMS) and module.track_running_stats:
            handles.append(module.register_forward_hook(consume(name)))
    forward_in_eval(model, example)
    for handle in handles:
        handle.remove()
    return [(convolution, norm) for convolution, norm in pairs if calls[convolution] == calls[norm] == 1]


def _folded_where_alike(model: nn.Module, pairs: list[tuple[str, str]], seen: Tensor) -> nn.Module:
    """Fold all of the pairs, or half by half those that leave the answers alike: some are read before their norm."""
    if not pairs:
        return model
    folded = _folded(model, pairs)
    if _agree(model, folded, seen):
        return folded
    if len(pairs) == 1:
        return model
    half = len(pairs) // 2
    return _folded_where_alike(_folded_where_alike(model, pairs[:half], seen), pairs[half:], seen)


def _folded(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    folded = copy.deepcopy(model)
    for convolution, norm in pairs:
        _fold(folded.get_submodule(convolution), folded.get_submodule(norm))
        replace_module(folded, norm, without_norm(folded.get_submodule(norm)))
    return folded


def _fold(module: nn.Module, norm: nn.Module) -> None:
    """Multiply the layer's outputs by what the norm would, in place: gain on weights or scales, shift in the bias."""
    layer = module.layer if isinstance(module, TrainingForm) else module
    assert isinstance(norm, BATCH_NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.detach()
    old: Tensor | None = layer.bias  # type: ignore[assignment]
    shift = -norm.running_mean * gain if old is None else (old.detach() - norm.running_mean) * gain
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    layer.bias = nn.Parameter(shift)
    module.scale_outputs(gain) if isinstance(module, TrainingForm) else scale_outputs(layer, gain)


def _agree(model: nn.Module, folded: nn.Module, example: Tensor) -> bool:
    """Whether both answer alike with unrounded inputs: a value on the edge of two levels may fall to either side."""
    answers = []
    for network in (model, folded):
        unrounded = copy.deepcopy(network)
        for module in unrounded.modules():
            if isinstance(module, TrainingForm):
                module.stop_rounding_inputs()
        with torch.no_grad():
            answers.append([leaf for leaf in tree_leaves(unrounded(example)) if isinstance(leaf, Tensor)])
    return all(
        bool((got - want).abs().max() <= TOLERANCE * want.abs().max().clamp_min(1e-6))
        for want, got in zip(*answers, strict=True)
    )
