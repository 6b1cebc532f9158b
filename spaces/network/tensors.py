"""Find the tensors in nested containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


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
