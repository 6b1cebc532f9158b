"""Replace convolutions that pad their own inputs by a padding and a plain convolution, which can be compressed.

TensorFlow pads a convolution so that its output has the size of the input over the stride, rounded up. Networks that
were ported from it (EfficientNet, MobileNetV3, many of timm's) do so in the forward of a class of their own, which no
axis can look into. Causal convolutions of sound and text pad on one side.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spaces.network.layers import CONVOLUTIONS, computes_as_torch, torch_class
from spaces.network.rewriting import REWRITING_TOLERANCE, modules_to_rewrite, seen_in_calls, with_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spaces.network.tensors import Inputs

PADDINGS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.ZeroPad1d, nn.Conv2d: nn.ZeroPad2d, nn.Conv3d: nn.ZeroPad3d,
}  # fmt: skip


def separate_padding(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a network with the same outputs in which such convolutions are plain ones, behind a padding where needed.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...). The padding is that of inputs of its size.

    Returns
    -------
    nn.Module
        A new network, or `model` itself if there is nothing to replace. A convolution is replaced if it computes, in
        training too, a convolution of its input with zeros around it: as TensorFlow pads, equally on both sides, or on
        one side; and if it adds the same zeros in every call.
    """
    names = modules_to_rewrite(model, _pads_itself)
    layers = {}
    for name, seen in seen_in_calls(model, example, names, _padding).items() if names else ():
        module: Any = model.get_submodule(name)
        if len(set(seen)) == 1 and seen[0] is not None:
            layers[name] = plain_convolution(module, seen[0], module.weight, module.bias)
    return with_layers(model, example, names, layers)


def _pads_itself(module: nn.Module) -> bool:
    """Whether the module is a convolution with a forward of its own and nothing but a weight and a bias."""
    tensors = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return isinstance(module, CONVOLUTIONS) and not computes_as_torch(module) and tensors <= {"weight", "bias"}


def _padding(module: Any, given: tuple[Any, ...], output: Tensor) -> tuple[int, ...] | None:  # noqa: ANN401
    """Return the zeros before and after the last dimension, then those of the one before it; None if more is computed.

    The layer is tried on noise, since the borders of the example may be zero, and in training, where it may drop out.
    """
    (inputs, *_) = given
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0), dtype=inputs.dtype).to(inputs.device)
    computed = [alone(module, noise, training=training) for training in (False, True)]
    for pads in paddings_to_try(module, inputs.shape, output.shape):
        expected = plain_convolution(module, pads, module.weight, module.bias)(noise)
        if expected.shape == output.shape and all(near(expected, each) for each in computed):
            return pads
    return None


def paddings_to_try(module: Any, before: torch.Size, after: torch.Size) -> Iterator[tuple[int, ...]]:  # noqa: ANN401
    """Yield paddings that may give this size: TensorFlow's, equal ones, all zeros before, all zeros after."""
    extents = [(kernel - 1) * dilation for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True)]
    sizes = list(zip(before[-len(extents) :], after[-len(extents) :], module.stride, extents, strict=True))[::-1]
    totals = [max((out - 1) * stride + extent + 1 - size, 0) for size, out, stride, extent in sizes]
    yield tuple(chain.from_iterable((total // 2, total - total // 2) for total in totals))
    yield tuple(chain.from_iterable((extent // 2, extent // 2) for *_, extent in sizes))
    yield tuple(chain.from_iterable((total, 0) for total in totals))
    yield tuple(chain.from_iterable((0, total) for total in totals))


def alone(module: nn.Module, inputs: Tensor, *, training: bool) -> Tensor:
    """Return the output of a module, in training or not, without its hooks."""
    before = module.training
    module.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            return type(module).forward(module, inputs)  # type: ignore[no-any-return]
    finally:
        module.train(before)


def near(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ by no more than rounding, and are not all zero."""
    largest = other.abs().max()
    return bool(largest > 0) and bool((one - other).abs().max() <= REWRITING_TOLERANCE * largest)


def plain_convolution(
    module: Any,  # noqa: ANN401 - a convolution
    pads: tuple[int, ...],
    weight: nn.Parameter,
    bias: nn.Parameter | None,
) -> nn.Module:
    """Return a convolution of torch's class like this one, with these parameters, behind a padding if one-sided."""
    kind = torch_class(module)
    before, after = pads[-2::-2], pads[-1::-2]  # of the first spatial dimension, the second, ...
    plain = kind(
        module.in_channels, module.out_channels, module.kernel_size, module.stride,
        before if before == after else 0, module.dilation, module.groups, bias is not None, device="meta",
    )  # fmt: skip
    plain.weight, plain.bias = weight, bias
    plain.train(module.training)
    return plain if before == after else nn.Sequential(PADDINGS[kind](pads), plain).train(module.training)
