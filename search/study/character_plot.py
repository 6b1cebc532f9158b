"""A plot in characters."""

from __future__ import annotations

import math
from typing import NamedTuple

from search.study.printed_tables import short

LOGARITHMIC_FROM = 20  # ratio of the largest to the smallest value from which an axis is logarithmic (chosen)


class Mark(NamedTuple):
    """A point of a plot and the character that stands for it."""

    x: float
    y: float
    character: str


class Axis(NamedTuple):
    """The range of an axis, and the number of places on it."""

    least: float
    most: float
    places: int

    @property
    def is_logarithmic(self) -> bool:
        """Whether equal steps are equal ratios."""
        return self.least > 0 and self.most > LOGARITHMIC_FROM * self.least

    def place(self, value: float) -> int:
        """Return the place of a value."""
        least, most, value = map(math.log if self.is_logarithmic else float, (self.least, self.most, value))
        return round((value - least) / ((most - least) or 1) * (self.places - 1))


def plot(marks: list[Mark], names: tuple[str, str], width: int, height: int) -> list[str]:
    """Return the lines of a plot; later marks cover earlier ones.

    Parameters
    ----------
    marks
        The points, at least one.
    names
        What is plotted along and upwards.
    width, height
        In characters, with the labels of the axes.
    """
    xs, ys = [mark.x for mark in marks], [mark.y for mark in marks]
    ends = [short(min(xs), names[0]), short(max(xs), names[0])]
    sides = [short(max(ys), names[1]), short(min(ys), names[1])]
    margin = max(map(len, sides))
    across = Axis(min(xs), max(xs), width - margin - 2)
    upwards = Axis(min(ys), max(ys), height - 3)
    rows = [[" "] * across.places for _ in range(upwards.places)]
    for x, y, character in marks:
        rows[-1 - upwards.place(y)][across.place(x)] = character
    labels = [sides[0], *[""] * (upwards.places - 2), sides[1]]
    lines = [names[1]]
    lines += [f"{label:>{margin}} │{''.join(row)}".rstrip() for label, row in zip(labels, rows, strict=True)]
    lines.append(f"{'':>{margin}} └{'─' * across.places}")
    middle = names[0] + (" (log)" if across.is_logarithmic else "")
    lines.append(f"{'':>{margin}}  {ends[0]}{middle:^{across.places - len(ends[0]) - len(ends[1])}}{ends[1]}")
    return lines
