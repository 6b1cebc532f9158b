"""What was found out about a network, kept as long as the network lives and its weights are those."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torch import nn

T = TypeVar("T")
Weights = tuple[tuple[int, int], ...]
_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[Weights, dict[Hashable, object]]] = weakref.WeakKeyDictionary()


def cached(model: nn.Module, key: Hashable, find: Callable[[], T]) -> T:
    """Return what `find` said of this very model under this key, asking it only the first time.

    The teacher of a study never changes, so its anatomy, statistics and orders of importance are found once a process.
    A network that is trained on is another one: what was found before is forgotten. A tensor in the key counts by
    identity.
    """
    weights = tuple((id(p), 0 if p.is_inference() else p._version) for p in model.parameters())  # noqa: SLF001
    before, known = _KNOWN.get(model, (weights, {}))
    if before != weights:
        known = {}
    _KNOWN[model] = weights, known
    if key not in known:
        known[key] = find()
    return cast("T", known[key])
