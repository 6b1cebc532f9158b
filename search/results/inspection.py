"""The table of `slimfront inspect`: what each axis can do to each layer, or why it can do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from search.study.spec import StudySpec
    from spaces import Anatomy


def inspection(spec: StudySpec, anatomy: Anatomy) -> pd.DataFrame:
    """Return one row per layer: its kind, its shape, its share of the multiply-adds, and one column per axis.

    Other modules with weights, on which no axis acts, follow with empty shares.
    """
    total = sum(layer.macs for layer in anatomy.layers) or 1
    actions: dict[str, Mapping[str, str]] = {}
    for axis in spec.space.steps:
        name = type(axis).__name__
        actions[name if name not in actions else f"{name} {len(actions) + 1}"] = axis.acts_on(anatomy)
    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "shape": f"{layer.inputs}->{layer.outputs}"
            + (f" {'x'.join(map(str, layer.kernel))}" if layer.kernel else ""),
            "macs_percent": 100 * layer.macs / total,
            **{axis: by_layer.get(layer.name, "no: unknown to this axis") for axis, by_layer in actions.items()},
        }
        for layer in anatomy.layers
    ]
    rows += [
        {"layer": name or "(the network itself)", "kind": kind, "shape": "", "macs_percent": None,
         **dict.fromkeys(actions, "follows its neighbours")}
        for name, kind in anatomy.others
    ]  # fmt: skip
    return pd.DataFrame(rows)


def percent_acted_on(table: pd.DataFrame, axis: str) -> float:
    """Return the percentage of the multiply-adds that is in layers on which the axis can act."""
    acting = ~table[axis].str.startswith("no: ") & table["macs_percent"].notna()
    return float(table.loc[acting, "macs_percent"].sum())
