"""Say, layer by layer and before any search, what each axis can do and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from search.study.spec import StudySpec
    from spaces import Anatomy


def inspection(spec: StudySpec, anatomy: Anatomy) -> pd.DataFrame:
    """Return one row a layer: its kind, its share of the multiply-adds, and what each axis says of it.

    Modules with weights on which no axis acts follow with empty shares.
    """
    total = sum(layer.macs for layer in anatomy.layers) or 1
    said = {type(axis).__name__: axis.acts_on(anatomy) for axis in spec.space.steps}
    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "shape": f"{layer.inputs}->{layer.outputs}"
            + (f" {'x'.join(map(str, layer.kernel))}" if layer.kernel else ""),
            "macs_percent": 100 * layer.macs / total,
            **{axis: words.get(layer.name, "no: not asked") for axis, words in said.items()},
        }
        for layer in anatomy.layers
    ]
    rows += [
        {"layer": name or "(the network itself)", "kind": kind, "shape": "", "macs_percent": None,
         **dict.fromkeys(said, "goes with its neighbours, or stays")}
        for name, kind in anatomy.others
    ]  # fmt: skip
    return pd.DataFrame(rows)


def reach(table: pd.DataFrame, axis: str) -> float:
    """Return the share of the multiply-adds, in percent, of the layers on which the axis can act."""
    acting = ~table[axis].str.startswith("no: ") & table["macs_percent"].notna()
    return float(table.loc[acting, "macs_percent"].sum())
