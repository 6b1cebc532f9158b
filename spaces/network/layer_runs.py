"""Describe the layers that run on an example, with the shapes of their inputs and outputs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from spaces.network.anatomy import Layer, Run
from spaces.network.layers import CONVOLUTIONS, LAYER_TYPES, TRANSPOSED, count_holders
from spaces.network.messages import first_line
from spaces.network.recurrent import Recurrent
from spaces.network.statistics import forward_in_eval
from spaces.network.tensors import shapes_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from spaces.network.tensors import Inputs


def layers_of(model: nn.Module, example: Inputs) -> tuple[Layer, ...]:
    """Return the layers that run on one example, shape (1, ...), in order of execution.

    Raises
    ------
    ValueError
        If the forward pass fails on the example.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)}
    runs: dict[str, list[Run]] = {}
    by_keyword: set[str] = set()

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if not inputs:
                by_keyword.add(name)
            elif isinstance(output, Tensor):  # a subclass may return something else; it is not a layer then
                runs.setdefault(name, []).append(_run(module, inputs[0], output))

        return module.register_forward_hook(note)

    handles = [watch(name, module) for name, module in modules.items()]
    try:
        forward_in_eval(model, example)
    except Exception as error:
        shapes = ", ".join(str((1, *shape)) for shape in shapes_of(example))
        raise ValueError(
            f"the network must accept the example, but its forward failed on a tensor of shape {shapes}: "
            f"{first_line(error)}; pass an example of the shape that the network is used with"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if by_keyword:
        name = min(by_keyword)
        raise ValueError(f"layer {name!r} gets its input as a keyword; call it as self.{name}(x)")
    holders = count_holders(model)
    repeated = {part for module in model.modules() if isinstance(module, Recurrent) for part in module.modules()}
    found = [
        describe(name, modules[name], tuple(calls), tied=holders[id(modules[name].weight)] > 1)
        for name, calls in runs.items()
    ]
    return tuple(replace(layer, recurrent=modules[layer.name] in repeated) for layer in found)


def _run(module: nn.Module, inputs: Tensor, output: Tensor) -> Run:
    # the batch has one example, so its leading dimensions count the windows and tokens that were moved there
    if isinstance(module, nn.Linear):
        return Run(output.numel() // output.shape[-1], (), ())
    space = len(module.kernel_size)  # type: ignore[arg-type]
    times = math.prod(output.shape[: -space - 1])  # there may be no batch dimension
    return Run(times, tuple(inputs.shape[-space:]), tuple(output.shape[-space:]))


def describe(name: str, module: nn.Module, runs: tuple[Run, ...] = (), *, tied: bool = False) -> Layer:
    """Return the `Layer` of a convolution or linear module; without `runs`, its kernel is applied once."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return Layer(name, kind, module.out_features, module.in_features, (), (), 1, runs or (Run(1, (), ()),), tied)
    assert isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
    kernel = tuple(int(size) for size in module.kernel_size)
    stride = tuple(int(size) for size in module.stride)
    runs = runs or (Run(1, stride, (1,) * len(stride)),)
    return Layer(name, kind, module.out_channels, module.in_channels, kernel, stride, module.groups, runs, tied)
