"""Plain layers in place of modules that hold a weight of their own and apply it as a convolution or a linear map.

Such as `Conv1D` of the transformers package, whose weight is transposed, or a class with `F.conv2d(x, self.weight)`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.overrides import TorchFunctionMode

from spaces.network.layers import LAYER_TYPES, linear_of
from spaces.network.rewriting import modules_to_rewrite, seen_in_calls, with_layers
from spaces.network.separate_padding import near

if TYPE_CHECKING:
    from collections.abc import Callable

    from spaces.network.tensors import Inputs

Form: TypeAlias = "Callable[[Any], nn.Module]"  # makes a layer of a module
SETTINGS = ("stride", "padding", "dilation", "groups")  # the arguments of a convolution behind input, weight and bias
TRANSPOSED_SETTINGS = ("stride", "padding", "output_padding", "groups", "dilation")
FUNCTIONS: dict[Any, tuple[Any, tuple[str, ...]]] = {
    F.conv1d: (nn.Conv1d, SETTINGS),
    F.conv2d: (nn.Conv2d, SETTINGS),
    F.conv3d: (nn.Conv3d, SETTINGS),
    F.conv_transpose1d: (nn.ConvTranspose1d, TRANSPOSED_SETTINGS),
    F.conv_transpose2d: (nn.ConvTranspose2d, TRANSPOSED_SETTINGS),
    F.conv_transpose3d: (nn.ConvTranspose3d, TRANSPOSED_SETTINGS),
}


def show_own_layers(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a network with the same outputs in which such modules are torch's layers, with the same weights.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...).

    Returns
    -------
    nn.Module
        A new network, or `model` itself if there is nothing to replace. A module is replaced if it computes nothing
        else, in training too, whatever its weights and inputs are.
    """
    names = modules_to_rewrite(model, _holds_a_weight)
    layers = {}
    for name, shapes in seen_in_calls(model, example, names, _input_shape).items() if names else ():
        module = model.get_submodule(name)
        if shapes and shapes[-1] is not None and None not in shapes and (layer := _plain(module, shapes[-1])):
            layers[name] = layer.train(module.training)
    return with_layers(model, example, names, layers)


def _holds_a_weight(module: nn.Module) -> bool:
    """Whether a module of another class has a weight of several dimensions, perhaps a bias, and no other tensors."""
    weights = dict(module.named_parameters())
    only = weights.keys() <= {"weight", "bias"} and not any(True for _ in module.buffers())
    other = not isinstance(module, (*LAYER_TYPES, nn.Embedding, nn.EmbeddingBag))
    return other and only and "weight" in weights and weights["weight"].dim() > 1


def _input_shape(_: nn.Module, inputs: tuple[Any, ...], output: object) -> torch.Size | None:
    """Return the shape of the input of a module that is called with one tensor and returns one; else None."""
    fits = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
    return inputs[0].shape if fits else None


def _plain(module: nn.Module, shape: torch.Size) -> nn.Module | None:
    """Return torch's layer that computes what the module does, with its weights; None if there is none."""
    tried, random = copy.deepcopy(module), torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in tried.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
            noise = torch.randn(shape, generator=random).to(tried.get_parameter("weight").device)
            with Calls() as calls:
                expected = [tried.eval()(noise)]
            expected.append(tried.train()(noise))
    except Exception:  # noqa: BLE001 - a module that wants another kind of input
        return None
    forms = _forms(tried, calls)
    return next((form(module) for form in forms if _computes(form, tried, noise, expected)), None)


def _computes(form: Form, module: nn.Module, noise: Tensor, expected: list[Tensor]) -> bool:
    """Whether the layer that is made of a module has these outputs."""
    try:
        with torch.no_grad():
            got = form(module)(noise)
    except Exception:  # noqa: BLE001 - a weight of another shape, or a setting that torch's layer lacks
        return False
    return all(got.shape == each.shape and near(got, each) for each in expected)


class Used(NamedTuple):
    """A convolution or a linear map that was called, with its weight, its bias and its other settings."""

    function: Any
    weight: Tensor
    bias: Tensor | None
    settings: dict[str, Any]


class Calls(TorchFunctionMode):
    """A mode that keeps with what convolutions and linear maps are called."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Used] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Call the function; keep what it is called with if it is one of these."""
        if function is F.linear or function in FUNCTIONS:
            further = FUNCTIONS[function][1] if function in FUNCTIONS else ()
            given = dict(zip(("input", "weight", "bias", *further), args, strict=False)) | (kwargs or {})
            settings = {name: value for name, value in given.items() if name in further}
            self.used.append(Used(function, given["weight"], given.get("bias"), settings))
        return function(*args, **(kwargs or {}))


def _forms(module: nn.Module, calls: Calls) -> list[Form]:
    """Return functions that make a layer of a module like this one: a convolution, or two linear layers to try."""
    weight = module.get_parameter("weight")
    if weight.dim() == 2:  # noqa: PLR2004 - a matrix
        return [
            lambda module: linear_of(module.weight, getattr(module, "bias", None)),
            lambda module: linear_of(module.weight.T.contiguous(), getattr(module, "bias", None)),
        ]
    found = [used for used in calls.used if used.weight is weight]
    return [lambda module: _convolution(module, found[0])] if len(found) == 1 else []


def convolution_of(used: Used) -> nn.Module:
    """Return a convolution, without values, that computes what was called."""
    weight, groups = used.weight, used.settings.get("groups", 1)
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    if "transpose" in used.function.__name__:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
    kind, biased = FUNCTIONS[used.function][0], used.bias is not None
    layer: nn.Module = kind(inputs, outputs, weight.shape[2:], bias=biased, device="meta", **used.settings)
    return layer


def _convolution(module: nn.Module, used: Used) -> nn.Module:
    """Return a convolution with the weights of a module."""
    layer = convolution_of(used)
    for name, parameter in module.named_parameters():
        assert used.bias is not None or name != "bias", "the bias is used in another way"
        setattr(layer, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    return layer
