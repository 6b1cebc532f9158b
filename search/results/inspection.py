"""What `slimfront inspect` shows: the teacher, the smallest plan, what each axis can do to each layer, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from objectives.mac_counter import count_and_words
from objectives.objective import in_digits
from search.evaluation.profiling import fit_before_search
from search.proposals.limits import sets_of_axes
from spaces.network.messages import first_line, listed, number_of
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from objectives.trees import Tree
    from search.evaluation.context import Context
    from search.study.spec import StudySpec
    from spaces import Anatomy, Plan

NO = "no: "  # what the words of an axis that does not act on a layer begin with; the reason follows
NO_LAYER = f"{NO}they have no weights; they shrink with the channels that they multiply"
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
            **{axis: by_name.get(layer.name, f"{NO}unknown to this axis") for axis, by_name in actions.items()},
        }
        for layer in anatomy.layers
    ]
    rows += [
        {"layer": name or "(the network itself)", "kind": kind, "shape": "",
         "macs_percent": 100 * others[name] / total if others[name] else None,
         **{axis: by_name.get(name, _words_of_other(name, kind, others[name], refused))
            for axis, by_name in actions.items()}}
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


def counted(model: nn.Module, example: Tree) -> tuple[Mapping[str, float] | None, list[str]]:
    """Return the multiply-adds of every module, and sentences about what they leave out; None if nothing is counted."""
    try:
        counts, words = count_and_words(model, example)
    except Exception as error:  # noqa: BLE001 - a network that torch.jit cannot trace may raise anything
        words = (
            f"multiply-adds cannot be counted, because torch.jit.trace fails ({first_line(error)}); "
            "what `inspect` shows are shares of those in layers"
        )
        return None, [words]
    return counts, [words] if words else []


def percent_acted_on(table: pd.DataFrame, axis: str) -> float:
    """Return the percentage of the multiply-adds that is in layers on which the axis can act."""
    acting = ~table[axis].str.startswith(NO) & table["macs_percent"].notna()
    return float(table.loc[acting, "macs_percent"].sum())


def short(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the layers without the reasons, which `refusals` lists, as it does the other modules."""
    shorter = table[table["macs_percent"].notna()].copy()
    for axis in table.columns[4:]:
        shorter[axis] = shorter[axis].where(~shorter[axis].str.startswith(NO), NO.rstrip(": "))
    return shorter


def refusals(table: pd.DataFrame) -> list[str]:
    """Return a line for each reason why an axis does not act on layers, with the layers that it holds for.

    Another line names the other modules with weights, which lose channels with the layers around them.
    """
    lines = []
    for axis in table.columns[4:]:
        layers_by_reason: dict[str, list[str]] = {}
        for layer, words in zip(table["layer"], table[axis], strict=True):
            if words.startswith(NO):
                reason = words.removeprefix(NO).replace(f"{layer!r}", "it")
                layers_by_reason.setdefault(reason, []).append(layer)
        for reason, names in sorted(layers_by_reason.items(), key=lambda item: -len(item[1])):
            lines.append(f"{axis}, {number_of(len(names), 'layer')}: {reason} ({listed(names)})")
    others = table[table["macs_percent"].isna()]
    for kind, modules in others.groupby("kind", sort=False)["layer"]:
        them = "them" if len(modules) > 1 else "it"
        lines.append(f"{len(modules)} {kind}: cut with the layers around {them} ({listed(modules)})")
    return lines


def smallest(context: Context, teacher: Mapping[str, float]) -> list[str]:
    """Return a line for each cost that is known before training: the least that a plan reaches, and its plan.

    These are the plans of the greatest strength of each set of axes; a search finds plans between them and the teacher.
    """
    space, anatomy, model = context.spec.space, context.subject.anatomy, context.cost_model
    plans = [context.plan(space.uniform(anatomy, mask)) for mask in sets_of_axes(len(space.steps))]
    costs = model.of(architectures_of(model.frame, plans))
    lines = []
    for objective in context.spec.costs:
        if objective.name in costs and objective.direction == "minimize":
            best = int(costs[objective.name].argmin())
            value, whole = float(costs[objective.name][best]), teacher[objective.name]
            share = f" ({value / whole:.3g} of the teacher's)" if whole > 0 else ""
            steps = plans[best].words().partition("; distil")[0]
            lines.append(f"the smallest plan: {objective.name} {in_digits(value)}{share}, by {steps}")
    return lines


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
    known = {*context.cost_model.models, *context.cost_model.formulas}
    unknown = [cost.name for cost in context.spec.costs if cost.name not in known and cost.direction == "minimize"]
    return [
        *(f"{name} is not predicted yet: `slimfront run` first measures networks on this machine" for name in unknown),
        *(
            f"{name}, predicted within {model.error:.0%}: "
            + ", ".join(f"{text} {value:.3g}" for text, value in zip(words, costs[name], strict=True))
            for name, model in context.cost_model.models.items()
        ),
    ]
