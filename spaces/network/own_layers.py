"""Plain layers in place of modules that hold a weight of their own and apply it as a convolution or a linear map.

Such as `Conv1D` of the transformers package, whose weight is transposed, or a class with `F.conv2d(x, self.weight)`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.overrides import TorchFunctionMode

from spaces.network.layers import LAYER_TYPES, linear_of, replace_module
from spaces.network.rewriting import modules_to_rewrite, outputs_in_eval, rewritten
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
    shapes = _input_shapes(model, example, [aliases[0] for aliases in names]) if names else {}
    found = {name: layer for name, shape in shapes.items() if (layer := _plain(model.get_submodule(name), shape))}

    def replace(root: nn.Module, aliases: list[str]) -> None:
        layer = copy.deepcopy(found[aliases[0].removeprefix("0").removeprefix(".")])
        replace_module(root, aliases[0], layer.train(root.get_submodule(aliases[0]).training))

    return rewritten(model, example, [aliases for aliases in names if aliases[0] in found], replace)


def _holds_a_weight(module: nn.Module) -> bool:
    """Whether a module of another class has a weight of several dimensions, perhaps a bias, and no other tensors."""
    weights = dict(module.named_parameters())
    only = weights.keys() <= {"weight", "bias"} and not any(True for _ in module.buffers())
    other = not isinstance(module, (*LAYER_TYPES, nn.Embedding, nn.EmbeddingBag))
    return other and only and "weight" in weights and weights["weight"].dim() > 1


def _input_shapes(model: nn.Module, example: Inputs, names: list[str]) -> dict[str, torch.Size]:
    """Return the shape of the input of each module that is called with one tensor and returns one."""
    found: dict[str, torch.Size] = {}
    odd: set[str] = set()
    handles = []
    for name in names:

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> None:  # noqa: ANN401
            if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                found[name] = inputs[0].shape
            else:
                odd.add(name)

        handles.append(model.get_submodule(name).register_forward_hook(note))
    try:
        outputs_in_eval(model, example)
    except Exception:  # noqa: BLE001 - `trace` runs the network again and raises an error with advice
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return {name: shape for name, shape in found.items() if name not in odd}


def _plain(module: nn.Module, shape: torch.Size) -> nn.Module | None:
    """Return torch's layer that computes what the module does, with its weights; None if there is none."""
    tried, random = copy.deepcopy(module), torch.Generator().manual_seed(0)
    calls = _Calls(tried)
    try:
        with torch.no_grad():
            for parameter in tried.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
            noise = torch.randn(shape, generator=random).to(tried.get_parameter("weight").device)
            with calls:
                expected = [tried.eval()(noise)]
            expected.append(tried.train()(noise))
    except Exception:  # noqa: BLE001 - a module that wants another kind of input
        return None
    return next((form(module) for form in calls.forms() if _computes(form, tried, noise, expected)), None)


def _computes(form: Form, module: nn.Module, noise: Tensor, expected: list[Tensor]) -> bool:
    """Whether the layer that is made of a module has these outputs."""
    try:
        with torch.no_grad():
            got = form(module)(noise)
    except Exception:  # noqa: BLE001 - a weight of another shape, or a setting that torch's layer lacks
        return False
    return all(got.shape == each.shape and near(got, each) for each in expected)


class _Calls(TorchFunctionMode):
    """Notes the convolutions with the weight of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._found: list[tuple[Any, dict[str, Any], bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Note the settings of a convolution."""
        if func in FUNCTIONS:
            given = settings_of(func, args, kwargs)
            if given["weight"] is self._module.weight:
                settings = {name: value for name, value in given.items() if name in TRANSPOSED_SETTINGS}
                self._found.append((func, settings, given.get("bias") is not None))
        return func(*args, **(kwargs or {}))

    def forms(self) -> list[Form]:
        """Return functions that make a layer of a module like this one: a convolution, or two linear layers to try."""
        if self._module.get_parameter("weight").dim() == 2:  # noqa: PLR2004 - a matrix
            return [
                lambda module: linear_of(module.weight, getattr(module, "bias", None)),
                lambda module: linear_of(module.weight.T.contiguous(), getattr(module, "bias", None)),
            ]
        return [lambda module: _convolution(module, *self._found[0])] if len(self._found) == 1 else []


def convolution_of(
    function: Any,  # noqa: ANN401 - one of `FUNCTIONS`
    weight: Tensor,
    settings: dict[str, Any],
    *,
    biased: bool,
) -> nn.Module:
    """Return a convolution, without values, that a function with a weight of this shape and these settings computes."""
    groups = settings.get("groups", 1)
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    if "transpose" in function.__name__:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
    layer: nn.Module = FUNCTIONS[function][0](inputs, outputs, weight.shape[2:], bias=biased, device="meta", **settings)
    return layer


def settings_of(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - of a call
    """Return the arguments of a call of a convolution by name, the input, the weight and the bias among them."""
    return dict(zip(("input", "weight", "bias", *FUNCTIONS[function][1]), args, strict=False)) | (kwargs or {})


def _convolution(module: nn.Module, function: Any, settings: dict[str, Any], biased: bool) -> nn.Module:  # noqa: ANN401, FBT001
    """Return a convolution with the weights of a module."""
    layer = convolution_of(function, module.get_parameter("weight"), settings, biased=biased)
    for name, parameter in module.named_parameters():
        assert biased or name != "bias", "the bias is used in another way"
        setattr(layer, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    return layer
