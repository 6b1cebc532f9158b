"""Turn a trained network into its deployed form: BatchNorms folded, integers packed, nothing that no output needs.

Folding does not change per-channel symmetric integers: a BatchNorm multiplies every output channel by one number, and
so does the scale. Networks are measured, exported and verified in this form.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spaces.network.layers import BATCH_NORMS, LAYER_TYPES, is_plain_norm, replace_module, scale_outputs
from spaces.network.stand_ins import WithoutNorm
from spaces.network.statistics import forward_in_eval
from spaces.network.tensors import run, some
from spaces.network.unread_layers import without_unread_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces.network.tensors import Inputs

FOLDING_TOLERANCE = 1e-3  # relative to the largest output; folding changes only roundings, which add up over layers


@runtime_checkable
class TrainingForm(Protocol):
    """A module that replaces one layer in training and is deployed in another form, such as integers.

    The layer is its submodule `layer`. (From Python 3.12 on, `isinstance` does not find the submodules of a module, so
    a protocol can only ask for methods.)
    """

    def scale_outputs(self, gain: Tensor) -> None:
        """Multiply each output channel by its gain, shape (O,), in place; the bias of the layer is unchanged."""
        ...

    def stop_rounding_inputs(self) -> None:
        """Use the inputs without rounding from now on, so that two networks can be compared numerically."""
        ...

    def shipped(self) -> nn.Module:
        """Return the deployed form; this module must not be used afterwards."""
        ...


def deployed(model: nn.Module, example: Inputs) -> nn.Module:
    """Return the deployed network in evaluation mode; `model` is not changed.

    Layers and norms that no output depends on, such as heads that only training returns, are replaced by zeros, as
    exported files do not have them.

    Parameters
    ----------
    model
        A trained network, with or without modules of the protocol `TrainingForm`.
    example
        A batch of inputs, shape (B, ...). The network runs on the first two, to find which BatchNorm reads which
        convolution, and to check that folding does not change the outputs.
    """
    inputs = some(example, slice(2))
    finished = without_unread_layers(copy.deepcopy(model).eval(), inputs)
    finished = _fold_where_outputs_agree(finished, _foldable_pairs(finished, inputs), inputs)
    for name, module in list(finished.named_modules()):
        if isinstance(module, TrainingForm):
            replace_module(finished, name, module.shipped().eval())
    return finished


def _foldable_pairs(model: nn.Module, example: Inputs) -> list[tuple[str, str]]:
    """Return (layer, BatchNorm) pairs where the norm reads the output tensor of the layer and both are called once.

    A tensor that was changed in place on the way, as by `x += shortcut`, is not the output of the layer any more.
    """
    producers: dict[tuple[int, int], tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def produce(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            producers[_identity(output)] = name, output  # holding the tensor prevents reuse of its id

        return note

    def consume(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if _identity(inputs[0]) in producers and is_plain_norm(norm, inputs[0], output):
                pairs.append((producers[_identity(inputs[0])][0], name))

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


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - changes with every write


def _fold_where_outputs_agree(model: nn.Module, pairs: list[tuple[str, str]], example: Inputs) -> nn.Module:
    """Fold the pairs that keep the outputs, found by bisection: some layers are also read before their norm."""
    if not pairs:
        return model
    folded = _folded(model, pairs)
    if _outputs_agree(model, folded, example):
        return folded
    if len(pairs) == 1:
        return model
    half = len(pairs) // 2
    return _fold_where_outputs_agree(_fold_where_outputs_agree(model, pairs[:half], example), pairs[half:], example)


def _folded(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    folded = copy.deepcopy(model)
    for convolution, norm in pairs:
        _fold(folded.get_submodule(convolution), folded.get_submodule(norm))
        replace_module(folded, norm, WithoutNorm(folded.get_submodule(norm)))
    return folded


def _fold(module: nn.Module, norm: nn.Module) -> None:
    """Apply the norm inside the layer, in place: the gain to its weights or scales, the shift to its bias."""
    layer = module.get_submodule("layer") if isinstance(module, TrainingForm) else module
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


def _outputs_agree(model: nn.Module, folded: nn.Module, example: Inputs) -> bool:
    """Whether both give the same outputs with unrounded inputs; rounded ones near a tie may fall on either level.

    They do not where the forward fails without the norm, because it reads something that only a norm has.
    """
    outputs: list[list[Tensor]] = []
    for network in (model, folded):
        unrounded = copy.deepcopy(network)
        for module in unrounded.modules():
            if isinstance(module, TrainingForm):
                module.stop_rounding_inputs()
        try:
            with torch.no_grad():
                outputs.append([leaf for leaf in tree_leaves(run(unrounded, example)) if isinstance(leaf, Tensor)])
        except Exception:
            if network is model:
                raise
            return False
    return all(
        bool((got - want).abs().max() <= FOLDING_TOLERANCE * want.abs().max().clamp_min(1e-6))
        for want, got in zip(*outputs, strict=True)
    )
