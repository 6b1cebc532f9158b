"""The front and the plans of its members, as pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from objectives import Objective
    from spaces import Anatomy, Plan

mpl.rcParams["svg.hashsalt"] = "slimfront"
GREY, BLUE, RED, GREEN = "#b8bcc4", "#1f5fbf", "#c23b22", "#2a8c4a"
NOTEBOOK_DPI = 80  # dots per inch of a picture in a notebook (chosen)
WIDE_RANGE = 8  # a cost that spans more than this factor is drawn on a logarithmic axis (chosen)


class Picture(Figure):
    """A figure that notebooks show also where pyplot was not imported."""

    def _repr_png_(self) -> bytes:
        """Return it as PNG."""
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=NOTEBOOK_DPI)
        return drawn.getvalue()


def draw_front(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    teacher: dict[str, float],
    title: str,
    path: Path | None,
    files: pd.DataFrame,
    files_name: str,
) -> Picture:
    """Draw the first objective against each of the others: candidates, both fronts, and the teacher as a star.

    The front of two objectives is drawn as a staircase: what is attained at each cost.

    Parameters
    ----------
    table
        As `search.results.candidates.candidates` returns it.
    objectives
        Of the study.
    teacher
        Their values for the teacher.
    title
        Of the picture.
    path
        A .png file to write, None for none.
    files, files_name
        What the files of the front measured (`search.results.file_records.file_table`), and what to call them.
    """
    names = [objective.name for objective in objectives]
    costs = names[1:] or names
    stairs: Literal["post", "pre"] = "post" if objectives[-1].direction == "minimize" else "pre"
    figure = Picture(figsize=(6.4 * len(costs), 4.8), layout="constrained")
    trained = table[table["state"] == "trained"]
    members, behind = trained[trained["on_front"]], trained[~trained["on_front"].astype(bool)]
    for index, cost in enumerate(costs):
        axes = figure.add_subplot(1, len(costs), index + 1)
        axes.scatter(behind[cost], behind[names[0]], s=18, color=GREY, label=f"behind the front ({len(behind)})")
        line = members.sort_values(cost)
        style = "-" if len(costs) == 1 else ""  # with three objectives the front is a surface, not a line
        label = f"front ({len(members)})"
        axes.step(line[cost], line[names[0]], where=stairs, ls=style, marker="o", color=BLUE, label=label)
        for number, x, y in zip(line["number"], line[cost], line[names[0]], strict=True):
            axes.annotate(str(number), (x, y), xytext=(4, -9), textcoords="offset points", fontsize=7, color=BLUE)
        kept = files[files["on_front"]].sort_values(cost)
        if len(kept):
            label = f"front of the {files_name} ({len(kept)} of {len(files)})"
            axes.step(kept[cost], kept[names[0]], where=stairs, ls=style, marker="s", ms=8, mfc="none", color=GREEN,
                      label=label)  # fmt: skip
        axes.scatter([teacher[cost]], [teacher[names[0]]], marker="*", s=180, color=RED, label="teacher", zorder=3)
        _scale(axes, [*trained[cost], *kept[cost], teacher[cost]])
        axes.set_xlabel(cost)
        axes.set_ylabel(names[0])
        axes.grid(alpha=0.3)
        seen = [*members[names[0]], *kept[names[0]], teacher[names[0]]]
        margin = 0.1 * (max(seen) - min(seen)) or 1.0
        axes.set_ylim(min(seen) - margin, max(seen) + margin)  # candidates far behind the front would flatten it
    figure.suptitle(title)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure


def _scale(axes: Any, values: list[float]) -> None:  # noqa: ANN401 - matplotlib's Axes
    if min(values) > 0 and max(values) > WIDE_RANGE * min(values):
        axes.set_xscale("log")


def draw_plan(plan: Plan, anatomy: Anatomy, title: str, path: Path) -> None:
    """Draw what the plan does to each layer: rows are layers in order, columns the choices, dark is more compression.

    Parameters
    ----------
    plan
        What to draw.
    anatomy
        Of the teacher.
    title
        Of the picture.
    path
        A .png file.
    """
    choices = plan.choices(anatomy)
    layers = [layer.name for layer in anatomy.layers]
    figure = Figure(figsize=(2.2 + 1.5 * len(choices), 1.4 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    strength = np.full((len(layers), len(choices)), np.nan)
    for column, chosen in enumerate(choices.values()):
        for row, layer in enumerate(layers):
            if layer in chosen:
                strength[row, column] = chosen[layer].strength
                colour = "white" if strength[row, column] > 0.6 else "black"  # noqa: PLR2004 - legible on the map
                axes.text(column, row, chosen[layer].word, ha="center", va="center", fontsize=7, color=colour)
    axes.imshow(strength, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(choices)), list(choices), fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.xaxis.tick_top()
    axes.set_title(title, fontsize=8)
    figure.savefig(path, dpi=140)
