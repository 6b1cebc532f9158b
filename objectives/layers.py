"""What a finished layer tells of its precision."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class LowPrecision(Protocol):
    """A module whose weight is stored, and whose input is rounded, at these widths (32: not at all)."""

    weight_bits: int
    activation_bits: int
