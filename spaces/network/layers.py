"""Kinds of layers, and what can be said of one or done to one whatever its kind."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYER_TYPES = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def without_norm(norm: nn.Module) -> nn.Module:
    """Return what is left of a norm once a layer does its work, or none has to: nothing, or its activation."""
    return nn.Sequential(*norm.children()) if any(norm.children()) else nn.Identity()


def is_plain_norm(norm: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether a norm is torch's own, or of a class that only calls its children after it, as timm's activate."""
    assert isinstance(norm, BATCH_NORMS)
    if type(norm).forward is nn.BatchNorm2d.forward:
        return True
    plain = nn.functional.batch_norm(
        inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
    )
    return torch.equal(without_norm(norm)(plain), output)


def count_holders(model: nn.Module) -> Counter[int]:
    """Return how many modules hold each parameter, by the parameter's id; one of two names is one module."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of that name, under every other name too by which the network knows it."""
    old = model.get_submodule(name)
    for alike in [other for other, held in model.named_modules(remove_duplicate=False) if held is old]:
        model.set_submodule(alike, module)


def depthwise(module: nn.Module) -> bool:
    """Whether the module is a convolution with one kernel for every channel, which it keeps apart."""
    return (
        isinstance(module, CONVOLUTIONS)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the weight of a layer is simply a parameter, not computed from others before every forward."""
    return "weight" in dict(module.named_parameters(recurse=False))


FLOAT_BITS = 32  # bits of a layer that is left alone


def scale_outputs(layer: nn.Module, gain: Tensor) -> None:
    """Multiply the weight of a layer in place, so that each output channel becomes `gain` times what it was.

    Parameters
    ----------
    layer
        A convolution or linear layer; its bias stays.
    gain
        One number an output channel, shape (O,).
    """
    weight = layer.get_parameter("weight")
    if isinstance(layer, TRANSPOSED):  # the outputs of a group lie along the second axis
        for part, its in zip(weight.data.chunk(layer.groups), gain.chunk(layer.groups), strict=True):
            part.mul_(along(its, 1, part))
    else:
        weight.data.mul_(along(gain, 0, weight))


def along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return the values as a tensor that lies along that axis of another."""
    return values.reshape([-1 if dimension == axis else 1 for dimension in range(like.dim())])


def run_layer(layer: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """Run a convolution or linear layer with another weight."""
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight, layer.bias)
    if isinstance(layer, TRANSPOSED):
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(layer.kernel_size) - 1]
        assert not isinstance(layer.padding, str)
        return run(
            inputs, weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    assert isinstance(layer, CONVOLUTIONS)
    output: Tensor = layer._conv_forward(inputs, weight, layer.bias)  # noqa: SLF001 - knows every padding mode
    return output


# what gives as many numbers as it is given, so that zeros can stand for it
SHAPELESS = (*NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
