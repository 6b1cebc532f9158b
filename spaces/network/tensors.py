"""Find the tensors in nested containers."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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


def seeded_outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return the output tensors of a network, without gradients, the same ones in every call for the same network."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some networks draw random numbers in evaluation mode too
        return tensors(model(inputs))


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
