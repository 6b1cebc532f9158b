"""Find the tensors in nested containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor
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
