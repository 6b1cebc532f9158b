"""The report of a study: a folder of pictures, one interactive page and one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from objectives.objective import in_digits
from search.results.candidates import candidates
from search.results.file_records import file_table, files_words
from search.results.page.facts import facts
from search.results.page.page import page
from search.results.plots import draw_front, draw_plan
from search.study.front import trained_words
from search.study.marks import REPORT, ensure_free, put_files, unfinished_folder
from search.study.records import TEACHER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from optuna import Study

    from search.evaluation.context import Context
    from search.results.file_records import Member

PAGE, SPREADSHEET, PICTURE = "front.html", "candidates.csv", "front.png"


def report(
    study: Study,
    context: Context,
    members: Sequence[Member],
    folder: Path,
    out: Path,
    words: str = "STUDY",
    refresh_seconds: float | None = None,
) -> list[Path]:
    """Write front.html, candidates.csv, front.png and plan-<number>.png for each member; return their paths.

    Parameters
    ----------
    study, context
        The study and its context.
    members
        The members of its front, with their verification records.
    folder
        The folder of the study's files.
    out
        The folder of the report. What we did not write there is neither deleted nor overwritten.
    words
        The study as named on a command line, for the commands that the page shows.
    refresh_seconds
        How often the page loads itself again, while a run goes on; then no pictures are written. None for never.

    Raises
    ------
    UserError
        If a file of the report has the name of one that is not ours.
    """
    pictures = [] if refresh_seconds else [PICTURE, *(f"plan-{trial.number}.png" for trial, _ in members)]
    names = [PAGE, SPREADSHEET, *pictures]
    ensure_free(out, names, REPORT)
    with unfinished_folder(out, REPORT) as unfinished:
        table = candidates(study, context.spec)
        content = facts(study, context, members, table, folder, words)
        (unfinished / PAGE).write_text(page(content, refresh_seconds), encoding="utf-8")
        table.to_csv(unfinished / SPREADSHEET, index=False)
        if pictures:
            _draw(study, context, members, table, unfinished)
        put_files(unfinished, out, REPORT)
    return [out / name for name in names]


def _draw(study: Study, context: Context, members: Sequence[Member], table: pd.DataFrame, out: Path) -> None:
    """Write the pictures of a report to a folder."""
    spec, names = context.spec, [objective.name for objective in context.spec.objectives]
    title = f"{spec.name}: {trained_words(study)}, seed {spec.seed}"
    teacher, files = study.user_attrs[TEACHER], file_table(members, spec)
    draw_front(table, spec.objectives, teacher, title, out / PICTURE, files, files_words(members, spec))
    for trial, _ in members:
        values = ", ".join(f"{name} {in_digits(value)}" for name, value in zip(names, trial.values, strict=True))
        path = out / f"plan-{trial.number}.png"
        draw_plan(context.plan(trial.params), context.subject.anatomy, f"trial {trial.number}: {values}", path)
