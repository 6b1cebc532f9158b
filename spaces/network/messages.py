"""Texts of error messages."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMED = 3  # names in a sentence, at most (chosen)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class where the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def number_of(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural but for one.

    >>> number_of(1, "layer"), number_of(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(names: Iterable[str]) -> str:
    """Return the first names of many, and how many more there are."""
    every = [name or "the network itself" for name in names]
    more = len(every) - NAMED
    return ", ".join(every[:NAMED]) + (f" and {more} more" if more > 0 else "")


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
