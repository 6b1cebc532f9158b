"""Networks of any inputs and outputs as functions of tensors, which is what files are."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from objectives.decisions import Decision, Repeat, decisions_of
from objectives.outputs import device_of
from objectives.trees import Tree, at, leaves, moved, rebuilt, run

if TYPE_CHECKING:
    from collections.abc import Sequence

NOT_IN_NAMES = re.compile(r"\W+")  # what names of tensors in files cannot hold


class FlatNetwork(NamedTuple):
    """A network as a function of tensors.

    Attributes
    ----------
    module
        Takes the input tensors one after another, and returns one output tensor or a tuple of them.
    example
        The input tensors of an example, contiguous: an exporter may fix the order of dimensions in memory in the file.
    inputs, outputs
        Their names: `x` and `y`, the keys of a dict, or `x1`, `x2`, ...
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]


class Flat(nn.Module):
    """A network that takes its input tensors one after another and returns its output tensors as a tuple.

    Parameters
    ----------
    model
        The network.
    example
        Inputs of the network, whose structure is that of all inputs.
    decisions
        What its forward pass decides on values that do not depend on the inputs.
    """

    def __init__(self, model: nn.Module, example: Tree, decisions: tuple[Decision, ...] = ()) -> None:
        super().__init__()
        self.model = model
        self._structure = example
        self._decisions = decisions

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the output tensors, in order; the tensor itself if there is one."""
        # torch.jit.trace has the values, and turns sizes into tensors too
        repeats = self._decisions and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        with Repeat(self._decisions) if repeats else contextlib.nullcontext():
            found = leaves(run(self.model, rebuilt(self._structure, tensors)))
        return found[0] if len(found) == 1 else tuple(found)


def flat(model: nn.Module, example: Tree) -> FlatNetwork:
    """Return a network in evaluation mode as a function of tensors; one of one tensor stays as it is.

    Unless its forward pass decides on values of constants: then the module repeats these decisions. A network whose
    weights are not contiguous, such as those of ``channels_last``, is copied.
    """
    if not all(weight.is_contiguous() for weight in model.state_dict().values() if isinstance(weight, Tensor)):
        model = _contiguous(copy.deepcopy(model))
    one = moved(at(example, slice(1)), device_of(model))
    with torch.no_grad():
        output = run(model, one)
    decisions = decisions_of(model, one)
    is_flat = isinstance(example, Tensor) and isinstance(output, Tensor) and not decisions
    module = model if is_flat else Flat(model, at(example, slice(1)), decisions).eval()
    inputs, outputs = _names("x", example), _names("y", output)
    if set(inputs) & set(outputs):  # in a file, a name belongs to one tensor
        outputs = [f"y_{name}" for name in outputs]
    return FlatNetwork(module, tuple(tensor.contiguous() for tensor in leaves(example)), inputs, outputs)


def by_argument(module: nn.Module, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return one value for each tensor as `torch.export` takes them; those of ``*tensors`` are one argument."""
    return tuple(inspect.signature(module.forward).bind(*values).arguments.values())


def _contiguous(model: nn.Module) -> nn.Module:
    """Return a network after changing the order of its weights in memory to that of their dimensions."""
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            weight.data = weight.contiguous()
    return model


def _names(letter: str, tree: Tree) -> list[str]:
    count = len(leaves(tree))
    if isinstance(tree, Mapping) and all(isinstance(value, Tensor) for value in tree.values()):
        return [NOT_IN_NAMES.sub("_", str(name)) for name in tree]
    return [letter] if count == 1 else [f"{letter}{index}" for index in range(1, count + 1)]
