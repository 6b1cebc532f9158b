"""Versions of runtimes: which ones take a file, as far as they were tried."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from objectives.runtimes.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VERSION_FORM = re.compile(r"\d+(\.\d+)*")


@runtime_checkable
class HasVersions(Runtime, Protocol):
    """A runtime of which older versions were tried."""

    def oldest_version(self, path: Path) -> str:
        """Return the oldest of the tried versions that takes a file."""
        ...


def taken_widths(version: str, oldest: Mapping[int, str]) -> tuple[int, ...]:
    """Return the bits of weights, ascending, that a version of a runtime takes; all without a version.

    Parameters
    ----------
    version
        The version, such as ``1.20``; empty for the one that is installed.
    oldest
        The oldest version that takes each of the widths.

    Raises
    ------
    ValueError
        If it is no version, or older than all that were tried.
    """
    if not version:
        return tuple(sorted(oldest))
    if not isinstance(version, str) or not VERSION_FORM.fullmatch(version):
        raise ValueError(f"the version of a runtime must be numbers with dots, such as '1.20', but got {version!r}")
    found = tuple(sorted(bits for bits, first in oldest.items() if _numbers(first) <= _numbers(version)))
    if not found:
        known = sorted(oldest.values(), key=_numbers)
        tried = f"at least {known[0]}, the oldest that was tried" if known else "left out: no older one was tried"
        raise ValueError(f"the version of this runtime must be {tried}, but got {version!r}")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
