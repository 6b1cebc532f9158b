"""Types of layers, and operations that work on all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows

from spaces.network.stand_ins import WithoutNorm

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHANNEL_NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # with `num_features`
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
LAYER_TYPES = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def is_plain_norm(norm: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether a norm is torch's own, or a subclass that only applies its children afterwards, as timm's norms."""
    assert isinstance(norm, BATCH_NORMS)
    if type(norm).forward is nn.BatchNorm2d.forward:
        return True
    plain = nn.functional.batch_norm(
        inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
    )
    return torch.equal(WithoutNorm(norm)(plain), output)


def count_holders(model: nn.Module) -> Counter[int]:
    """Return the number of modules that hold each parameter, by its id; a module with two names counts once."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module with this name, also under all its other names in the network."""
    old = model.get_submodule(name)
    for alias in [other for other, held in model.named_modules(remove_duplicate=False) if held is old]:
        model.set_submodule(alias, module)


def depthwise(module: nn.Module) -> bool:
    """Whether the module is a convolution, transposed or not, with exactly one kernel for every channel."""
    return (
        isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
        and 1 < module.groups == module.in_channels == module.out_channels
    )


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the weight of a layer is a parameter, not computed from other parameters in every forward pass."""
    return "weight" in dict(module.named_parameters(recurse=False))


FLOAT_BITS = 32  # bits of a weight or activation that is not quantized


def scale_outputs(layer: nn.Module, gain: Tensor) -> None:
    """Multiply the weight of a layer in place, so that each output channel is multiplied by its gain.

    Parameters
    ----------
    layer
        A convolution or linear layer; its bias is unchanged.
    gain
        One number for each output channel, shape (O,).
    """
    weight = layer.get_parameter("weight")
    if isinstance(layer, TRANSPOSED):  # the outputs of a group lie along dimension 1
        for part, part_gain in zip(weight.data.chunk(layer.groups), gain.chunk(layer.groups), strict=True):
            part.mul_(along(part_gain, 1, part))
    else:
        weight.data.mul_(along(gain, 0, weight))


def along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """Reshape a vector so that it lies along one axis of a tensor like `like`."""
    return values.reshape([-1 if dimension == axis else 1 for dimension in range(like.dim())])


def computes_as_torch(layer: nn.Module) -> bool:
    """Whether the class of a convolution or linear layer computes what torch's own class does."""
    kind = torch_class(layer)
    return all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward"))


def torch_class(layer: nn.Module) -> Any:  # noqa: ANN401 - one of the layer types
    """Return torch's class of a convolution or linear layer, from which its own class may be derived."""
    return next(kind for kind in LAYER_TYPES if isinstance(layer, kind))


def state_sizes(layer: nn.Module) -> None:
    """Let a layer state the sizes of its weights, in place, where its author replaced these and nothing else."""
    outputs, inputs = layer.weight.shape[:2]  # type: ignore[index]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, inputs
        if layer.bias is not None and layer.bias.dim() > 1 and layer.bias.numel() == outputs:  # broadcast until now
            layer.bias = nn.Parameter(layer.bias.detach().reshape(-1), layer.bias.requires_grad)
    elif isinstance(layer, CONVOLUTIONS):
        layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
    elif isinstance(layer, TRANSPOSED):
        layer.out_channels, layer.in_channels = inputs * layer.groups, outputs


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with copies of these parameters."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


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
    # torch's own, which knows every padding mode, not that of a derived class
    output: Tensor = torch_class(layer)._conv_forward(layer, inputs, weight, layer.bias)  # noqa: SLF001
    return output


# modules whose output has the shape of their input, so that zeros can replace it
SHAPE_PRESERVING = (*CHANNEL_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
