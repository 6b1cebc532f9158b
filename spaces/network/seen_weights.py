"""Layers whose own forward computes their weight in every pass, such as standardized convolutions, made plain ones.

They are classes derived from torch's layers, or modules with a weight of their own, as layers with equalized learning
rates often are.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.overrides import TorchFunctionMode

from spaces.network.layers import (
    CONVOLUTIONS,
    LAYER_TYPES,
    computes_as_torch,
    has_plain_weight,
    linear_of,
    replace_module,
)
from spaces.network.own_layers import FUNCTIONS, convolution_of, settings_of
from spaces.network.rewriting import modules_to_rewrite, outputs_in_eval, rewritten
from spaces.network.separate_padding import alone, near, paddings_to_try, plain_convolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spaces.network.tensors import Inputs


class _Used(NamedTuple):
    """The operation that was called, with its weight, its bias and its other settings."""

    function: Any
    weight: Tensor
    bias: Tensor | None
    settings: dict[str, Any]


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
    plain = _plain_layers(model, example, names) if names else {}

    def replace(root: nn.Module, aliases: list[str]) -> None:
        replace_module(root, aliases[0], copy.deepcopy(plain[aliases[0].removeprefix("0").removeprefix(".")]))

    new = rewritten(model, example, [aliases for aliases in names if aliases[0] in plain], replace)
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


def _plain_layers(model: nn.Module, example: Inputs, names: Sequence[Sequence[str]]) -> dict[str, nn.Module]:
    """Return plain layers for the modules that compute their weight and nothing else, by name."""
    found: dict[str, list[nn.Module | None]] = {aliases[0]: [] for aliases in names}
    handles = []
    for name, calls in found.items():

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any, calls: Any = calls) -> None:  # noqa: ANN401
            try:
                calls.append(_plain(module, inputs[0], output))
            except Exception:  # noqa: BLE001 - a layer with an interface of its own
                calls.append(None)

        handles.append(model.get_submodule(name).register_forward_hook(note))
    try:
        outputs_in_eval(model, example)
    except Exception:  # noqa: BLE001 - the network is run again and raises an error with advice
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return {name: layers[0] for name, layers in found.items() if len(layers) == 1 and layers[0] is not None}


def _plain(module: nn.Module, inputs: Tensor, output: Tensor) -> nn.Module | None:
    """Return a plain layer that computes what the module computes for noise, in evaluation and in training."""
    dice = torch.Generator().manual_seed(0)
    noises = [torch.randn(inputs.shape, generator=dice, dtype=inputs.dtype).to(inputs.device) for _ in range(2)]
    computed, used = [], []
    for noise in noises:
        for training in (False, True):
            with torch.no_grad(), _Watch() as watch:
                computed.append(alone(module, noise, training=training))
            used += watch.used
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
        layer = convolution_of(first.function, weight, first.settings, biased=bias is not None)
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


class _Watch(TorchFunctionMode):
    """A mode that keeps the weights and biases that convolutions and matrix products are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[_Used] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Call the function; keep what a convolution or a linear map is called with."""
        if function is F.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
        elif function in FUNCTIONS:
            given = settings_of(function, args, kwargs)
        else:
            return function(*args, **(kwargs or {}))
        settings = {name: value for name, value in given.items() if name not in {"input", "weight", "bias"}}
        self.used.append(_Used(function, given["weight"], given.get("bias"), settings))
        return function(*args, **(kwargs or {}))
