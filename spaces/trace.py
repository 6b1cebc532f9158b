"""Look at a network once: which layers ran, on what, and which channels belong together."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from spaces.anatomy import Anatomy, Layer, Run, first_line
from spaces.attempts import irreplaceable
from spaces.branches import branches_of
from spaces.depth import dispensable
from spaces.groups import channel_groups
from spaces.memory import remembered
from spaces.statistics import forward_in_eval
from spaces.surgery import CONVOLUTIONS, LAYER_TYPES, TRANSPOSED, holders

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

FLOAT_BYTES = 4


def trace(model: nn.Module, example: Tensor) -> Anatomy:
    """Return the anatomy of `model`, traced on one example and remembered as long as the model lives.

    Parameters
    ----------
    model
        Any network that takes one tensor. It is not changed.
    example
        A batch of inputs, shape (B, ...); only the first is used.

    Raises
    ------
    ValueError
        If the forward pass fails on the example.
    """
    return remembered(model, ("anatomy", tuple(example.shape[1:])), lambda: _look(model, example[:1]))


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a network, if it is one that can be compressed.

    Raises
    ------
    ValueError
        If its weights are narrower than 32 bits, if it is TorchScript, or if it cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a TorchScript network shows none of its layers; give the torch.nn.Module it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() < FLOAT_BYTES:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(f"a network is compressed from 32-bit floats, but {name!r} is {kind}; give model.float()")
    for name, module in model.named_modules():
        if any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):  # noqa: SLF001
            raise ValueError(
                f"{name!r} has the old torch.nn.utils.weight_norm, which cannot be copied; "
                "torch.nn.utils.remove_weight_norm makes its weight plain"
            )
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(f"the network must be one that can be copied, but {first_line(error)}") from error


def _look(model: nn.Module, example: Tensor) -> Anatomy:
    seen, example = copied(model).eval().cpu(), example.cpu()  # structure is the same on every device
    layers = layers_of(seen, example)
    stays = irreplaceable(seen, example, [layer.name for layer in layers if not layer.tied])
    layers = tuple(replace(layer, stays=stays.get(layer.name, "")) for layer in layers)
    groups, refusals, products = channel_groups(seen, example, tuple(layer.name for layer in layers))
    weighted = {layer.name for layer in layers}
    others = tuple(
        (name, type(module).__name__)
        for name, module in seen.named_modules()
        if name not in weighted and any(True for _ in module.parameters(recurse=False))
    )
    branches = dispensable(seen, example, branches_of(seen, example, layers, groups))
    return Anatomy(layers, groups, refusals, others, products, branches)


def layers_of(model: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """Return the layers of a model that run on one example, shape (1, ...), in order of execution.

    Raises
    ------
    ValueError
        If the forward pass fails on the example.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)}
    runs: dict[str, list[Run]] = {}
    by_keyword: set[str] = set()

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if not inputs:
                by_keyword.add(name)
            elif isinstance(output, Tensor):  # else it is a layer by its class alone
                runs.setdefault(name, []).append(_run(module, inputs[0], output))

        return module.register_forward_hook(note)

    handles = [watch(name, module) for name, module in found.items()]
    try:
        forward_in_eval(model, example)
    except Exception as error:
        raise ValueError(
            f"the network must accept the example, but its forward failed on a tensor of shape "
            f"{tuple(example.shape)}: {first_line(error)}; give an example as the network is called in use"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if by_keyword:
        name = min(by_keyword)
        raise ValueError(f"layer {name!r} is called with its input as a keyword; call it as self.{name}(x)")
    holding = holders(model)
    return tuple(
        describe(name, found[name], tuple(calls), tied=holding[id(found[name].weight)] > 1)
        for name, calls in runs.items()
    )


def _run(module: nn.Module, given: Tensor, output: Tensor) -> Run:
    # not divided by the length of the batch, which is 1: windows and tokens may have been moved there
    if isinstance(module, nn.Linear):
        return Run(output.numel() // output.shape[-1], (), ())
    space = len(module.kernel_size)  # type: ignore[arg-type]
    times = math.prod(output.shape[: -space - 1])  # without a batch the channels come first
    return Run(times, tuple(given.shape[-space:]), tuple(output.shape[-space:]))


def describe(name: str, module: nn.Module, runs: tuple[Run, ...] = (), *, tied: bool = False) -> Layer:
    """Return the `Layer` of a convolution or linear module; without runs, as applied at one position."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return Layer(name, kind, module.out_features, module.in_features, (), (), 1, runs or (Run(1, (), ()),), tied)
    assert isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
    kernel = tuple(int(size) for size in module.kernel_size)
    stride = tuple(int(size) for size in module.stride)
    runs = runs or (Run(1, stride, (1,) * len(stride)),)
    return Layer(name, kind, module.out_channels, module.in_channels, kernel, stride, module.groups, runs, tied)
