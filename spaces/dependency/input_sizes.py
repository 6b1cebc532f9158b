"""Try a network at other sizes of its input: where it runs as before, and what it computes there."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spaces.dependency.operator_calls import Call
from spaces.dependency.product_rules import matrix_products
from spaces.dependency.trace import trace
from spaces.network.anatomy import InputSize
from spaces.network.layers import LAYER_TYPES
from spaces.network.messages import first_line
from spaces.network.resizing import InputResize, resize_input
from spaces.network.statistics import forward_in_eval
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spaces.network.anatomy import Anatomy, Extent
    from spaces.network.tensors import Inputs

IMAGE_DIMENSIONS = 4  # batch, channels, height, width
RESIZE_TOLERANCE = 1e-4  # relative to the largest output; only the rounding may differ
# modules whose multiply-adds are not counted here: layers have their own, and fvcore counts none in recurrent ones
COUNTED_APART = (*LAYER_TYPES, nn.RNNBase, nn.RNNCellBase)


def try_input_sizes(
    model: nn.Module, example: Inputs, anatomy: Anatomy, sizes: Sequence[tuple[int, ...]]
) -> tuple[InputSize, ...]:
    """Return the size of the example, and each of the other sizes with what the network computes there.

    A size is refused, with the reason, unless the network runs there with finite outputs of the same shape, and has the
    same layers, groups of channels, branches and matrix products. These are traced again at every size.

    Parameters
    ----------
    model
        A network; it is not changed.
    example
        Inputs, shape (B, ...); only the first is used.
    anatomy
        The anatomy of the network.
    sizes
        Heights and widths to try.
    """
    if not isinstance(example, Tensor):
        return (InputSize((), refusal="only one image can be resized, but the network takes several inputs"),)
    whole, one = tuple(example.shape[2:]), example[:1]
    if example.dim() != IMAGE_DIMENSIONS or not example.is_floating_point():
        kind = str(example.dtype).removeprefix("torch.")
        reason = f"only images can be resized, floats (B, C, H, W), but the input is {kind} {_shape(one)}"
        return (InputSize(whole, refusal=reason),)
    runs, tried = tuple(layer.runs for layer in anatomy.layers), copy.deepcopy(model).eval()
    found = [InputSize(whole, runs, tuple(extent.sizes for extent in anatomy.products))]
    try:
        macs = _macs_outside(tried, one, anatomy.products)
        with torch.no_grad():
            expected = [output.shape for output in tensors(tried(one))]
    except Exception as error:  # noqa: BLE001 - an unusual network may raise anything; other axes still work
        return (InputSize(whole, refusal=f"the forward pass fails: {first_line(error)}"),)
    for size in sizes:
        failure = _reason_of_failure(tried, one, size, expected)
        if failure is None:
            smaller = InputResize(size).resized(one)
            other = trace(model, smaller)
            failure = _structural_difference(anatomy, other)
        if failure is not None:
            found.append(InputSize(size, refusal=failure))
            continue
        saved = macs - _macs_outside(tried, smaller, other.products)
        products = tuple(extent.sizes for extent in other.products)
        found.append(InputSize(size, tuple(layer.runs for layer in other.layers), products, saved))
    return tuple(found)


def _reason_of_failure(
    model: nn.Module, example: Inputs, size: tuple[int, ...], expected: Sequence[torch.Size]
) -> str | None:
    """Run the network at another size, and a copy that resizes its input; return what is wrong, or None."""
    mismatches: list[str] = []

    def note(name: str, layer: nn.Linear, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].shape[-1:] != (layer.in_features,):
            mismatches.append(
                f"{name!r} would get {inputs[0].shape[-1]} features instead of {layer.in_features}, since it reads "
                "positions as features, without a pooling to a fixed size before it"
            )

    try:
        resizing = copy.deepcopy(model)
        resize_input(resizing, InputResize(size))
        for name, module in resizing.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda layer, inputs, name=name: note(name, layer, inputs))
        with torch.no_grad():
            got = tensors(copy.deepcopy(resizing)(example))  # a copy, since later steps and exports copy it too
            wanted = tensors(model(InputResize(size).resized(example)))
    except Exception as error:  # noqa: BLE001 - a network that is not made for this size may raise anything
        return mismatches[0] if mismatches else f"the forward pass fails: {first_line(error)}"
    if (shapes := [output.shape for output in wanted]) != list(expected):
        return f"the output has the shape {_shape(*shapes)} instead of {_shape(*expected)}"
    if not all(bool(output.isfinite().all()) for output in wanted):
        return "the outputs are not finite"
    if any(not _agree(one, other) for one, other in zip(got, wanted, strict=True)):
        return "a resize before the network does not give the outputs of smaller inputs"
    return None


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= RESIZE_TOLERANCE * other.abs().max().clamp_min(1e-6))


def _structural_difference(whole: Anatomy, other: Anatomy) -> str | None:
    """Return in what the anatomy at another size differs from that of the whole input, or None."""
    if [replace(layer, runs=(), stays="") for layer in whole.layers] != [
        replace(layer, runs=(), stays="") for layer in other.layers
    ]:
        return "other layers run"
    if any(smaller.stays and not layer.stays for layer, smaller in zip(whole.layers, other.layers, strict=True)):
        return "not all layers can be replaced"
    if not set(whole.groups) <= set(other.groups):
        return "not all groups of channels can be pruned"
    branches = ({replace(branch, readers=()) for branch in anatomy.branches} for anatomy in (whole, other))
    if not next(branches) <= next(branches):  # readers are only refitted: which ones are found may depend on padding
        return "not all branches can be left out"
    if [_channels(extent) for extent in whole.products] != [_channels(extent) for extent in other.products]:
        return "the matrix products read other channels"
    return None


def _channels(extent: Extent) -> tuple[Any, ...]:
    """Return what must not depend on the size: the cuts of a product, and the sizes of the dimensions that they cut."""
    return len(extent.sizes), extent.cuts, tuple(extent.sizes[dimension] for dimension, _, _ in extent.cuts)


def _macs_outside(model: nn.Module, example: Inputs, products: Sequence[Extent]) -> int:
    """Return the multiply-adds outside of layers and of these products."""
    counter = _MacCounter(model)
    try:
        with counter:
            forward_in_eval(model, example)
    finally:
        counter.remove_hooks()
    return counter.macs - sum(math.prod(extent.sizes) for extent in products)


class _MacCounter(TorchDispatchMode):
    """Counts the multiply-adds of matrix products and convolutions outside of layers, as fvcore does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self._depth = 0  # of nested layers
        self._handles = []
        for module in model.modules():
            if isinstance(module, COUNTED_APART):
                self._handles += [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave, always_call=True),
                ]

    def remove_hooks(self) -> None:
        """Remove all hooks from the network."""
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run the operation, and count it."""
        output = function(*args, **(kwargs or {}))
        if not self._depth:
            call = Call(function, args, kwargs or {}, tensors(output), lambda tensor: tensor)
            self.macs += sum(math.prod(map(len, edges)) for edges in matrix_products(call))
            if call.name == "convolution":
                inputs, weight = args[:2]
                applied = inputs if call.argument("transposed") else output
                self.macs += math.prod(applied.shape) * math.prod(weight.shape[1:])
        return output

    def _enter(self, *_: object) -> None:
        self._depth += 1

    def _leave(self, *_: object) -> None:
        self._depth -= 1


def _shape(*values: Tensor | torch.Size) -> str:
    return ", ".join(str(tuple(value.shape if isinstance(value, Tensor) else value)) for value in values)
