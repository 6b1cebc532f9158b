"""Find the tensors in nested containers, and run networks that take several."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable

Inputs: TypeAlias = Any  # of a network: a tensor, or a tuple or dict of tensors, each with the examples first

CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
NOT_ENTERED = frozenset({*sys.stdlib_module_names, "builtins", "torch", "numpy"} - {"__main__"})  # packages


def tensors(tree: object) -> list[Tensor]:
    """Return the tensors in nested containers, mappings and dataclasses included."""
    found: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors(dict(leaf))
        elif dataclasses.is_dataclass(leaf):
            found += tensors(list(vars(leaf).values()))
    return found


def run(model: Callable[..., Any], inputs: Inputs) -> Any:  # noqa: ANN401 - whatever the network returns
    """Return the outputs of a network; a tuple of inputs is passed by position, a dict by name."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def some(inputs: Inputs, chosen: slice) -> Inputs:
    """Return the examples of a slice."""
    return tree_map(lambda tensor: tensor[chosen], inputs)


def twice(inputs: Inputs) -> Inputs:
    """Return a batch with every example twice, as norms in training mode need several."""
    return tree_map(lambda tensor: torch.cat([tensor, tensor]), inputs)


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """Return the inputs on a device."""
    return tree_map(lambda tensor: tensor.to(device), inputs)


def count_of(inputs: Inputs) -> int:
    """Return the number of examples."""
    return len(tensors(inputs)[0])


def identity_of(inputs: Inputs) -> Tensor | tuple[Tensor, ...]:
    """Return what stands for the inputs in the key of a cache: the tensors themselves."""
    return inputs if isinstance(inputs, Tensor) else tuple(tensors(inputs))


def shapes_of(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """Return the shape of one example of every tensor."""
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors(inputs))


def seeded_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return the output tensors of a network, without gradients, the same ones in every call for the same network."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some networks draw random numbers in evaluation mode too
        return tensors(run(model, inputs))


def reachable(values: Iterable[object]) -> Iterator[object]:
    """Yield values and all that their containers and objects hold, each once; modules and tensors are not entered."""
    seen: dict[int, object] = {}  # holding the objects prevents reuse of their ids
    waiting = [*values]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, CONTAINERS):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, tuple | frozenset):
            waiting += value
        elif holds_state(value):
            waiting += vars(value).values()


def holds_state(value: object) -> bool:
    """Whether it is an object of a class of the user or of another library, whose attributes may change."""
    plain = not isinstance(value, type | Tensor | nn.Module) and hasattr(value, "__dict__")
    return plain and type(value).__module__.partition(".")[0] not in NOT_ENTERED
