"""Sentences for errors."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, for a message of one line; its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Word the error for a name that does not exist, with the nearest names that do.

    Parameters
    ----------
    what
        The kind of thing, such as `layer`.
    name
        What was asked for.
    known
        The names that exist, in any iterable.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    return f"no {what} is called {name!r}; the nearest are: {', '.join(near) or 'none at all'}"
