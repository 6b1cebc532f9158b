"""What can be compressed in a network, from Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.commands.inspect import inspected
from search.results.inspection import refusals, short
from search.results.inspection_summary import summary
from spaces.network.web_table import web_table

from .asking import Selection
from .quiet import in_notebook, working

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from search.study.spec import StudySpec


@dataclass(frozen=True, repr=False)
class Inspection:
    """What can be compressed in a network, or why not; notebooks show it as a table.

    Attributes
    ----------
    name
        The study.
    layers
        One row for each layer: its name, kind, shape, share of the multiply-adds in percent, and what each axis can
        choose for it; `no: ...` says why it can choose nothing. Other modules with weights follow.
    teacher
        What was measured on the teacher.
    costs
        Lines about the teacher's file and the smallest plans.
    notes
        Lines about layers on which an axis does not act, and about what is not counted.
    problem
        What would stop a run of this study; empty if nothing does.
    """

    name: str
    layers: pd.DataFrame
    teacher: Mapping[str, float]
    costs: tuple[str, ...]
    notes: tuple[str, ...]
    problem: str

    def __repr__(self) -> str:
        """Return what `slimfront inspect` prints."""
        return "\n".join([*self._lines(), *self.costs, *summary(self.layers), "", *self.notes])

    def _repr_html_(self) -> str:
        """Return the layers, for notebooks."""
        shown = short(self.layers)
        shares = shown["macs_percent"].map("{:.1f}".format)
        rows = shown.assign(macs_percent=shares).to_numpy().tolist()
        return web_table(self.name, [*map(str, shown)], rows, [*self._lines(), *self.costs, *self.notes])

    def _lines(self) -> list[str]:
        return [f"a run would stop: {self.problem}"] if self.problem else []


def inspect(
    study: StudySpec | str,
    *,
    settings: Mapping[str, object] | None = None,
    runtime: str | None = None,
    device: str = "auto",
    threads: int = 1,
    quiet: bool | None = None,
) -> Inspection:
    """Find out what can be compressed in each layer of a study's network, or why not.

    All that a run checks before it searches is checked: the data, a training step, the objectives, the teacher's file.
    Nothing is stored.

    Parameters
    ----------
    study, settings, runtime, device, threads
        As in `run`.
    quiet
        Whether messages are left out; by default in notebooks.

    Raises
    ------
    UserError
        If the study cannot be loaded or does not fit its data.
    """
    shared = {"runtime": runtime, "device": device, "threads": threads}
    options = Selection(study, settings or {}, shared).of("inspect")
    with working(quiet=in_notebook() if quiet is None else quiet):
        found = inspected(options)
    notes = *found.notes, *refusals(found.layers)
    problem = "" if found.problem is None else " ".join(str(found.problem).split())
    return Inspection(found.spec.name, found.layers, found.teacher, tuple(found.costs), notes, problem)
