"""A cache of results about a network, valid while the network lives and its weights are unchanged."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torch import nn

T = TypeVar("T")
Weights = tuple[tuple[int, int], ...]  # identity and version of every parameter
_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Weights, dict[Hashable, object]]] = weakref.WeakKeyDictionary()


def cached(model: nn.Module, key: Hashable, find: Callable[[], T]) -> T:
    """Return the cached result for this model and key; call `find` only the first time.

    The teacher of a study never changes, so its anatomy, statistics and orders of importance are computed once per
    process. When the weights of a network change, its cached results are dropped. Tensors in the key are compared by
    identity.
    """
    weights = tuple((id(p), 0 if p.is_inference() else p._version) for p in model.parameters())  # noqa: SLF001
    cached_weights, results = _CACHE.get(model, (weights, {}))
    if cached_weights != weights:
        results = {}
    _CACHE[model] = weights, results
    if key not in results:
        results[key] = find()
    return cast("T", results[key])
