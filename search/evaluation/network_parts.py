"""The parts of a network that can be measured alone: modules that take one tensor and return one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from objectives.trees import leaves, length, run
from search.costs.work import Ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from objectives.trees import Tree

LARGEST_SHARE = 0.25  # of the network's layers: the most that a part has (chosen)


class Part(NamedTuple):
    """A module of a network, with the columns of its layers, what it takes for a batch, and its ends."""

    module: nn.Module
    columns: tuple[int, ...]
    inputs: Tensor
    ends: Ends


def ends_of(network: nn.Module, batch: Tree) -> Ends:
    """Return how many numbers of one example a network takes and returns."""
    with torch.no_grad():
        return _ends(batch, run(network, batch))


def parts_of(network: nn.Module, batch: Tree, layers: Sequence[str]) -> list[Part]:
    """Return the parts of a network; of modules with the same layers, the outermost.

    Parameters
    ----------
    network
        A finished network in evaluation mode.
    batch
        Its inputs, shape (B, ...).
    layers
        Names of the layers in the order of their columns.
    """
    calls: dict[str, list[tuple[object, ...]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, given, returned, name=name: calls.setdefault(name, []).append((*given, returned))
        )
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            run(network, batch)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[tuple[int, ...], Part] = {}
    most, count = max(2, int(LARGEST_SHARE * len(layers))), length(batch)
    for name, module in network.named_modules():
        columns = tuple(at for at, layer in enumerate(layers) if f"{layer}.".startswith(f"{name}."))
        called = calls.get(name, [])
        tensors = called[0] if len(called) == 1 else ()
        if 0 < len(columns) <= most and columns not in found and len(tensors) == 2:  # noqa: PLR2004 - taken, returned
            taken, returned = tensors
            if isinstance(taken, Tensor) and isinstance(returned, Tensor) and len(taken) == count == len(returned):
                found[columns] = Part(module, columns, taken, _ends(taken, returned))
    return list(found.values())


def _ends(taken: Tree, returned: Tree) -> Ends:
    return Ends(*(sum(tensor[:1].numel() for tensor in leaves(tree) if tensor.dim()) for tree in (taken, returned)))
