"""What `slimfront inspect` shows: what each axis can do to each layer, or why it can do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from search.evaluation.profiling import fit_before_search
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from search.evaluation.context import Context
    from search.study.spec import StudySpec
    from spaces import Anatomy, Plan

INSPECTED_STRENGTHS = 0.5, 1.0  # of the axes whose predicted costs are shown (chosen)


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
            **{axis: by_name.get(layer.name, "no: unknown to this axis") for axis, by_name in actions.items()},
        }
        for layer in anatomy.layers
    ]
    rows += [
        {"layer": name or "(the network itself)", "kind": kind, "shape": "", "macs_percent": None,
         **{axis: by_name.get(name, "follows its neighbours") for axis, by_name in actions.items()}}
        for name, kind in anatomy.others
    ]  # fmt: skip
    return pd.DataFrame(rows)


def percent_acted_on(table: pd.DataFrame, axis: str) -> float:
    """Return the percentage of the multiply-adds that is in layers on which the axis can act."""
    acting = ~table[axis].str.startswith("no: ") & table["macs_percent"].notna()
    return float(table.loc[acting, "macs_percent"].sum())


def predicted_words(context: Context) -> list[str]:
    """Describe, for each cost that measurements of this machine predict, what each axis alone would do to it.

    Only what was measured before is used. Ranks and narrow weights, for instance, may make a small network slower.
    """
    fit_before_search(context, 0.0)
    space, anatomy = context.spec.space, context.subject.anatomy
    count = len(space.steps)
    words = ["nothing removed"]
    plans: list[Plan | None] = [None]
    for strength in INSPECTED_STRENGTHS:
        for axis, mask in zip(space.steps, np.eye(count), strict=True):
            words.append(f"{type(axis).__name__} at strength {strength:g}")
            plans.append(context.plan(space.uniform(anatomy, tuple(map(float, strength * mask)))))
        words.append(f"all axes at strength {strength:g}")
        plans.append(context.plan(space.uniform(anatomy, (strength,) * count)))
    architectures = architectures_of(context.cost_model.frame, plans)
    costs = context.cost_model.of(architectures) if context.cost_model.models else {}
    return [
        f"{name}, predicted within {model.error:.0%}: "
        + ", ".join(f"{text} {value:.3g}" for text, value in zip(words, costs[name], strict=True))
        for name, model in context.cost_model.models.items()
    ]
