"""Texts of error messages."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class where the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name, with the nearest known names.

    Parameters
    ----------
    what
        The kind of object, such as `layer`.
    name
        The unknown name.
    known
        The names that exist.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    return f"no {what} is called {name!r}; the nearest are: {', '.join(near) or 'none at all'}"
