"""The table of `slimfront inspect` in one screen: layers of equal choices together, and the largest layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from search.results.inspection import NO, percent_acted_on
from spaces.network.messages import listed, number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

FIRST_AXIS = 4  # column; before it are name, kind, shape and share
MOST_GROUPS = 5  # that are shown (chosen)
LARGEST_LAYERS = 5  # layers that are named with their shares (chosen)
UNIT_RANGE = re.compile(r"(\d+)-(\d+) of (\d+) units")
PERCENT_RANGE = re.compile(r"%-(?=\d)")
ANY_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def summary(table: pd.DataFrame) -> list[str]:
    """Return paragraphs about a table of `inspection`: shares of the axes, largest layers, and layers by choice.

    Layers are together if the same axes can choose the same of them, but for numbers; in `12% to 75-88%` the second
    number ranges from 75 to 88 over these layers.
    """
    layers = table[table["macs_percent"].notna()]
    axes = list(table.columns[FIRST_AXIS:])
    largest = layers.nlargest(LARGEST_LAYERS, "macs_percent")
    shares = ", ".join(
        f"{name} {share:.1f}%" for name, share in zip(largest["layer"], largest["macs_percent"], strict=True)
    )
    lines = [
        f"{axis} can act on {percent_acted_on(table, axis):.1f}% of the multiply-adds, "
        f"{(~layers[axis].str.startswith(NO)).sum()} of {len(layers)} layers"
        for axis in axes
    ]
    lines.append(f"most multiply-adds: {shares}")
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(layers[axes].itertuples(index=False)):
        groups.setdefault(tuple(ANY_NUMBER.sub("#", _choice(words)) for words in row), []).append(place)
    parts = [layers.iloc[places] for places in groups.values()]
    ordered = sorted(parts, key=lambda group: group["macs_percent"].sum(), reverse=True)
    for group in ordered[:MOST_GROUPS]:
        lines += ["", _heading(group), *(f"  {axis}: {_range([*map(_choice, group[axis])])}" for axis in axes)]
    if rest := sum(map(len, ordered[MOST_GROUPS:])):
        lines += ["", f"{rest} more layers in {len(ordered) - MOST_GROUPS} groups; --all shows every layer"]
    return lines


def _heading(group: pd.DataFrame) -> str:
    share, names = group["macs_percent"].sum(), list(group["layer"])
    return f"{number_of(len(names), 'layer')}, {share:.1f}% of the multiply-adds ({listed(names)}):"


def _choice(words: str) -> str:
    """Return what an axis can choose for a layer, without the layers that are tied to it, and with shares of units."""
    if words.startswith(NO):
        return "no"
    return PERCENT_RANGE.sub("% to ", UNIT_RANGE.sub(_units_in_percent, words.partition(", together with")[0]))


def _units_in_percent(found: re.Match[str]) -> str:
    least, most, whole = map(int, found.groups())
    return f"{100 * least / whole:.0f}%-{100 * most / whole:.0f}% of the units"


def _range(choices: Sequence[str]) -> str:
    """Return choices that differ only in numbers as one, with the range of each number."""
    columns = zip(*(map(float, ANY_NUMBER.findall(choice)) for choice in choices), strict=True)
    ranges = [f"{min(c):g}" if min(c) == max(c) else f"{min(c):g}-{max(c):g}" for c in columns]
    shown = iter(ranges)
    differs = ", as the layer allows" if any("-" in one for one in ranges) else ""
    return ANY_NUMBER.sub(lambda _: next(shown), choices[0]) + differs
