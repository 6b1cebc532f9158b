"""The result of a study: its front and its candidates as tables, and what can be done with them."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from search.commands.confirm import confirmed
from search.commands.export import exported
from search.commands.loading import opened
from search.commands.report import reported
from search.commands.showing import members_of
from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.results.candidates import candidates
from search.results.file_records import file_table, files_words
from search.results.goal import goal_note
from search.results.page.columns import unit_of
from search.results.plots import draw_front
from search.results.tables import front_table
from search.study.errors import UserError
from search.study.front import front, trained_words
from search.study.machine import device_named
from search.study.records import TEACHER
from spaces.network.messages import number_of
from spaces.network.web_table import web_table

from .quiet import in_notebook, working

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from optuna import Study

    from search.results.file_records import Member
    from search.results.plots import Picture
    from search.study.outline import Outline
    from spaces import Plan

    from .asking import Selection

YES_OR_NO = {"yes": True, "no": False}


class Result:
    """What is stored of a study: `run` and `load_study` return it. All is read anew whenever it is asked for.

    Attributes
    ----------
    study
        The Optuna study.
    folder
        The folder of its files.
    failures
        A message for each member of the front whose file could not be verified in this run.
    """

    def __init__(
        self, selection: Selection, study: Study, outline: Outline, folder: Path, failures: Sequence[str] = ()
    ) -> None:
        self._selection, self._outline = selection, outline
        self.study, self.folder, self.failures = study, folder, tuple(failures)

    @property
    def front(self) -> pd.DataFrame:
        """The front, one row for each member, the best in the first objective first.

        `trial` is the number of the candidate; `top1` and `top5` are in percent, other names end in their units.
        Columns that begin with `file_` are measured on the verified files. `pick` of `export` takes these names. The
        units of all columns are in `front.attrs["units"]`, empty for counts and words.

        Raises
        ------
        UserError
            If no candidate is on the front yet.
        """
        table = front_table(self.study, self._outline, self._members()).iloc[1:].reset_index(drop=True)
        table["trial"] = table["trial"].astype(int)
        for name in table.columns.intersection(["feasible", "file_front", "file_feasible"]):
            table[name] = table[name].map(YES_OR_NO).astype("boolean")  # with missing values, of unverified files
        table = table.infer_objects()
        table.attrs["units"] = {name: unit_of(name) for name in map(str, table)}
        return table

    @property
    def candidates(self) -> pd.DataFrame:
        """All finished trials, one row for each: how it ended, its objectives, its CPU seconds, plan and parameters."""
        return candidates(self.study, self._outline).rename(columns={"number": "trial"})

    @property
    def teacher(self) -> dict[str, float]:
        """What was measured on the teacher."""
        return dict(self.study.user_attrs.get(TEACHER, {}))

    def plot(self) -> Picture:
        """Draw the candidates, the front, the front of the files, and the teacher."""
        spec, members = self._outline, self._members()
        table, files = candidates(self.study, spec), file_table(members, spec)
        return draw_front(table, spec.objectives, self.teacher, self._title(), None, files, files_words(members, spec))

    def plan(self, number: int) -> Plan:
        """Return the plan of a trial.

        Raises
        ------
        UserError
            If no such trial has a plan.
        """
        plans = {trial.number: trial.params for trial in self.study.get_trials(deepcopy=False) if trial.params}
        if number not in plans:
            raise UserError(
                f"no trial {number} has a plan; the numbers are {min(plans, default=0)} to {max(plans, default=0)}"
            )
        with self._working():
            return self._context.plan(plans[number])

    def confirm(self, seeds: int = 3, pick: str | int | None = None) -> pd.DataFrame:
        """Train the members of the front for longer and verify their files; no other method reads the test split.

        Parameters
        ----------
        seeds
            Trainings of each member; 0 only verifies.
        pick
            Confirm only this member; as in `export`.

        Returns
        -------
        pd.DataFrame
            A row for each member: `trial`, `trainings`, its costs, and of each metric on validation and test the mean
            and the spread (standard deviation) over the trainings, NaN for one training.
        """
        options = self._selection.loadable().of("confirm", seeds=seeds, pick=pick)
        with self._working():
            found = confirmed(options)
            self.failures = tuple(found.verify())
        return pd.DataFrame([_row(record, found.context.spec) for record in found.records])

    def export(
        self,
        pick: str | int | None = None,
        out: str | Path | None = None,
        *,
        replace: bool = False,
        io: str = "",
        dynamic_size: bool = False,
        sizes: str = "",
        preprocessing: bool = False,
        license: str = "",  # noqa: A002 - as the option of the command line
    ) -> Path:
        """Write one member of the front as a verified file, with its plan, weights and a card; return the folder.

        Parameters
        ----------
        pick
            `goal`, `knee`, the number of a trial, or a sentence such as `max top1 where file_bytes<=20000`; by default
            `goal` if the study has one, else `knee`.
        out
            The folder of the files; by default `export/` in the folder of the study.
        replace
            Whether an earlier export there is overwritten.
        io, dynamic_size, sizes, preprocessing, license
            As the options of the command line: `slimfront export --help`.

        Raises
        ------
        UserError
            If no member fits, the folder is not free, or the file disagrees with the network.
        """
        options = self._selection.loadable().of(
            "export", pick=pick, out=out, replace=replace, io=io or None, dynamic_size=dynamic_size,
            sizes=sizes or None, preprocessing=preprocessing, license=license or None,
        )  # fmt: skip
        with self._working():
            return exported(options).folder

    def report(self, out: str | Path | None = None) -> list[Path]:
        """Write pictures, an interactive page and a table; return their paths.

        Parameters
        ----------
        out
            The folder of the report; by default `report/` in the folder of the study.
        """
        options = self._selection.loadable().of("report", out=out)
        with self._working():
            return reported(options)

    def _repr_html_(self) -> str:
        """Return the front in short, for notebooks."""
        if not front(self.study):
            return web_table(self._title(), (), [], ["no candidate is on the front yet"])
        table, spec, members = self.front, self._outline, self._members()
        wanted = ["trial", *(objective.name for objective in spec.measured), "file_bytes", "latency_ratio", "plan"]
        shown = table[[name for name in wanted if name in table and table[name].notna().any()]]
        rows = [["teacher", *(self.teacher.get(name, "") for name in shown.columns[1:])], *shown.to_numpy().tolist()]
        return web_table(
            self._title(),
            [*map(str, shown)],
            rows,
            [*filter(None, [goal_note(self.study, spec, members)]), *self.failures],
        )

    def __repr__(self) -> str:
        """Return the front in a few words."""
        return f"<Result of {self._title()}, in {self.folder}>"

    @functools.cached_property
    def _context(self) -> Context:
        options = self._selection.loadable().of("front")
        _, spec, _ = opened(options)
        return Context(spec, Subject(spec, device_named(options.device)))

    def _members(self) -> list[Member]:
        return members_of(self.study, self._outline, self.folder)

    def _title(self) -> str:
        members = number_of(len(front(self.study)), "member")
        return f"{self._outline.name}: {members} on the front, {trained_words(self.study)}"

    def _working(self) -> Any:  # noqa: ANN401 - a context
        return working(quiet=in_notebook())


def _row(record: dict[str, Any], spec: Outline) -> dict[str, Any]:
    """Return what `confirm` measured of a member, as scalars."""
    costs = {one.name: record["searched"][one.name] for one in spec.measured if one.is_cost}
    spread = {
        f"{name}_{part}": value[part] if part == "mean" or record["n"] > 1 else math.nan
        for name, value in record.items()
        if isinstance(value, dict) and "mean" in value
        for part in ("mean", "spread")
    }
    return {"trial": record["trial"], "trainings": record["n"], **costs, **spread}
