"""The front at a glance: a small table of its members, and a small plot of the first objective over a cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from search.study.attributes import numbers_of
from search.study.character_plot import Mark, plot
from search.study.front import front, trained
from search.study.printed_tables import short
from search.study.records import TEACHER, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.outline import Outline

MOST_SHOWN_MEMBERS = 8  # members in the table (chosen)
VIEW_HEIGHT = 12  # lines of the plot (chosen)
LEAST_PLOT = 24  # columns that a plot needs (chosen)
ON_FRONT, OFF_FRONT, TEACHER_MARK = "●", "·", "T"
LEGEND = f"{ON_FRONT} front, {OFF_FRONT} other candidates, {TEACHER_MARK} teacher"


def front_plot(study: Study, outline: Outline, width: int, height: int = VIEW_HEIGHT) -> list[str]:
    """Return the lines of a plot of all candidates; none without a cost or a front."""
    values = outline.objectives[0].name
    cost = next((one.name for one in (*outline.objectives[1:], *outline.measured) if one.is_cost), None)
    members = front(study)
    if cost is None or cost == values or not members:
        return []
    numbers = {trial.number for trial in members}
    marks = [(TEACHER_MARK, study.user_attrs.get(TEACHER, {}))]
    marks += [(OFF_FRONT, numbers_of(trial, VALUES)) for trial in trained(study) if trial.number not in numbers]
    marks += [(ON_FRONT, numbers_of(trial, VALUES)) for trial in members]
    points = [Mark(found[cost], found[values], mark) for mark, found in marks if {cost, values} <= found.keys()]
    return plot(points, (cost, values), width, height)


def spread(members: Sequence[FrozenTrial], most: int) -> list[FrozenTrial]:
    """Return at most so many members, from one end of the front to the other."""
    count = min(most, len(members))
    return [members[round(i * (len(members) - 1) / max(1, count - 1))] for i in range(count)]


def front_view(study: Study, outline: Outline, width: int) -> Table | str:
    """Return a table of at most eight members, from one end of the front to the other, beside the plot."""
    members = front(study)
    if not members:
        return "no candidate meets all limits yet" if trained(study) else "no candidate is trained yet"
    shown = spread(members, MOST_SHOWN_MEMBERS)
    names = [one.name for one in outline.objectives]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", vertical="bottom")
    for trial in shown:
        cells = (short(value, name) for name, value in zip(names, trial.values, strict=True))
        table.add_row(str(trial.number), *cells)
    if len(members) > len(shown):
        table.caption = f"{len(shown)} of {len(members)} members"
    used = 8 + sum(max(9, *map(len, name.split("_"))) for name in names)
    if width - used < LEAST_PLOT:
        return table
    both = Table.grid(padding=(0, 3, 0, 0))
    both.add_row(table, "\n".join(front_plot(study, outline, width - used)))
    return both
