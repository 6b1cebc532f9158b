"""What was found out about a network, kept exactly as long as the network lives."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torch import nn

T = TypeVar("T")
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, object]] = weakref.WeakKeyDictionary()


def remembered(model: nn.Module, key: Hashable, find: Callable[[], T]) -> T:
    """Return what `find` said of this very model under this key, asking it only the first time.

    The teacher of a study never changes, so its anatomy, statistics and orders of importance are found once a process.
    A tensor in the key counts by identity.
    """
    known = _KNOWN.setdefault(model, {})
    if key not in known:
        known[key] = find()
    return cast("T", known[key])
