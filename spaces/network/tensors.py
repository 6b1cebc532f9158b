"""One operation of torch as it was called, and the tensors in what it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors(tree: object) -> list[Tensor]:
    """Return the tensors in a nest of containers of any kind."""
    found: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors(dict(leaf))
        elif dataclasses.is_dataclass(leaf):
            found += tensors(list(vars(leaf).values()))
    return found
