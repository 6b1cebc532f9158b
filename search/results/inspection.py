"""What `slimfront inspect` shows: what each axis can do to each layer, or why it can do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from objectives.mac_counter import count, uncounted_words
from search.evaluation.profiling import fit_before_search
from spaces.network.messages import first_line
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from search.evaluation.context import Context
    from search.study.spec import StudySpec
    from spaces import Anatomy, Plan

NO_LAYER = "no: they have no weights; they shrink with the channels that they multiply"
INSPECTED_STRENGTHS = 0.5, 1.0  # of the axes whose predicted costs are shown (chosen)


def inspection(spec: StudySpec, anatomy: Anatomy, counts: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return one row per layer: its kind, its shape, its share of the multiply-adds, and one column per axis.

    Other modules with weights follow, on which no axis acts, and the matrix products outside of all of these.

    Parameters
    ----------
    spec
        The study.
    anatomy
        The anatomy of its teacher.
    counts
        The multiply-adds of every module with its submodules, and those of the network under "", as
        `objectives.mac_counter.count` returns them. Without them the shares are of the layers alone.
    """
    in_layers = sum(layer.macs for layer in anatomy.layers)
    refused = {refusal.layer: refusal.reason for refusal in anatomy.refusals}
    others = {name: 0.0 if counts is None else own_macs(name, counts) for name, _ in anatomy.others}
    total = (in_layers if counts is None else counts[""]) or 1
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
        {"layer": name or "(the network itself)", "kind": kind, "shape": "",
         "macs_percent": 100 * others[name] / total if others[name] else None,
         **dict.fromkeys(actions, _words_of_other(name, kind, others[name], refused))}
        for name, kind in anatomy.others
    ]  # fmt: skip
    products = total - in_layers - sum(others.values())
    if counts is not None and products > 0:
        rows.append(
            {"layer": "(matrix products outside of layers)", "kind": "", "shape": "",
             "macs_percent": 100 * products / total, **dict.fromkeys(actions, NO_LAYER)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _words_of_other(name: str, kind: str, macs: float, refused: Mapping[str, str]) -> str:
    if name in refused:
        return f"no: {refused[name]}"
    return f"no: no axis acts on {kind}" if macs else "follows its neighbours"


def own_macs(name: str, counts: Mapping[str, float]) -> float:
    """Return the multiply-adds of a module without those of its submodules."""
    prefix = f"{name}." if name else ""
    inside = [
        other for other in counts if other != name and other.startswith(prefix) and "." not in other[len(prefix) :]
    ]
    return counts.get(name, 0.0) - sum(counts[other] for other in inside)


def counted(model: nn.Module, example: Tensor) -> tuple[Mapping[str, float] | None, list[str]]:
    """Return the multiply-adds of every module, and sentences about what they leave out; None if nothing is counted."""
    try:
        words = uncounted_words(model, example)
        return count(model, example), [words] if words else []
    except Exception as error:  # noqa: BLE001 - a network that torch.jit cannot trace may raise anything
        words = (
            f"multiply-adds cannot be counted, because torch.jit.trace fails ({first_line(error)}); "
            "what `inspect` shows are shares of those in layers"
        )
        return None, [words]


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
