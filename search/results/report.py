"""The report of a study: a folder of pictures, one interactive page and one table."""

from __future__ import annotations

import functools
import html
import warnings
from typing import TYPE_CHECKING, Any

import optuna
from optuna.visualization import plot_hypervolume_history, plot_param_importances

from search.proposals.proxy_correlation import prediction_report
from search.results.candidates import candidates
from search.results.file_records import file_table
from search.results.goal import goal_note
from search.results.plots import draw_front, draw_plan, interactive_front
from search.results.verification import record_words
from search.study.front import trained
from search.study.marks import REPORT, ensure_free, put_files, unfinished_folder
from search.study.records import TEACHER
from search.study.unmet import known_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import plotly.graph_objects as go
    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.evaluation.context import Context
    from search.results.file_records import Member
    from search.study.spec import StudySpec

LEAST_TRIALS_FOR_IMPORTANCE = 8  # trained trials; from fewer the importance of some 20 parameters is noise (chosen)
REFERENCE_POINT_REACH = 1.1  # distance of the reference point from the best values, in ranges (chosen)


def report(study: Study, context: Context, members: Sequence[Member], out: Path) -> list[Path]:
    """Write front.png, front.html, candidates.csv and plan-<number>.png for each member; return their paths.

    Parameters
    ----------
    study, context
        The study and its context.
    members
        The members of its front, with their verification records.
    out
        The folder of the report. What we did not write there is neither deleted nor overwritten.

    Raises
    ------
    UserError
        If a file of the report has the name of one that is not ours.
    """
    names = ["front.png", "front.html", "candidates.csv", *(f"plan-{trial.number}.png" for trial, _ in members)]
    ensure_free(out, names, REPORT)
    with unfinished_folder(out, REPORT) as unfinished:
        _write(study, context, members, unfinished)
        put_files(unfinished, out, REPORT)
    return [out / name for name in names]


def _write(study: Study, context: Context, members: Sequence[Member], out: Path) -> None:
    """Write the files of a report to a folder."""
    spec = context.spec
    table = candidates(study, spec)
    names = [objective.name for objective in spec.objectives]
    columns = [*(objective.name for objective in spec.measured), "cpu_seconds"]
    teacher = study.user_attrs[TEACHER]
    title = f"{spec.name}: {len(trained(study))} trained candidates, seed {spec.seed}"
    table.to_csv(out / "candidates.csv", index=False)
    files = file_table(members, spec)
    draw_front(table, names, teacher, title, out / "front.png", files, spec.runtime.name)
    for trial, _ in members:
        values = ", ".join(f"{name} {value:,.4g}" for name, value in zip(names, trial.values, strict=True))
        path = out / f"plan-{trial.number}.png"
        draw_plan(context.plan(trial.params), context.subject.anatomy, f"trial {trial.number}: {values}", path)
    fronts = [
        interactive_front(table, (names[0], cost), teacher, title, columns, files, spec.runtime.name)
        for cost in names[1:] or names
    ]
    figures = [*fronts, *_history(study), *_importances(study, names)]
    checks = {trial.number: _verification_words(record) for trial, record in members}
    limits = [f"limit: {limit.words}" for limit in known_limits(study, spec)]
    notes = filter(None, [*limits, goal_note(study, spec, members), prediction_report(study, spec)])
    (out / "front.html").write_text(_page(spec, figures, checks, list(notes)), encoding="utf-8")


def _verification_words(record: dict[str, Any]) -> str:
    """Describe the verification of a member."""
    return record_words(record) if record else "not verified yet"


def _page(spec: StudySpec, figures: list[go.Figure], checks: dict[int, str], notes: list[str]) -> str:
    """Return one HTML page that works offline: it contains the script of the plots."""
    parts = [figure.to_html(full_html=False, include_plotlyjs=not index) for index, figure in enumerate(figures)]
    rows = "".join(
        f"<li><a href='plan-{number}.png'>trial {number}</a>: {html.escape(words)}</li>"
        for number, words in checks.items()
    )
    heading = "<h2>The front: plans, and measurements of the exported files</h2>"
    checked = f"{heading}<ul>{rows}</ul>{''.join(f'<p>{html.escape(note)}</p>' for note in notes)}"
    name = html.escape(spec.name)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{name}</title></head>"
        f"<body style='font-family: sans-serif; max-width: 1100px; margin: 1em auto'>{parts[0]}{checked}"
        f"{''.join(parts[1:])}</body></html>"
    )


def reference_point(study: Study) -> list[float]:
    """Return a point a little worse than every trained candidate, from which the hypervolume is measured."""
    point = []
    for column, direction in enumerate(study.directions):
        values = [trial.values[column] for trial in trained(study)]
        best, worst = (max(values), min(values)) if direction.name == "MAXIMIZE" else (min(values), max(values))
        point.append(best + (worst - best) * REFERENCE_POINT_REACH)
    return point


def _history(study: Study) -> Iterator[go.Figure]:
    """Yield the hypervolume over the trials, if there are at least two objectives and two trained trials."""
    if len(trained(study)) > 1 and len(study.directions) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            figure = plot_hypervolume_history(study, reference_point(study))
        yield figure.update_layout(title="Hypervolume over the trials", template="plotly_white")


def _value(column: int, trial: FrozenTrial) -> float:
    """Return one objective of a trial."""
    return float(trial.values[column])


def _importances(study: Study, names: list[str]) -> Iterator[go.Figure]:
    """Yield the importance of the parameters for each objective (fANOVA), if there are enough trials."""
    if len(trained(study)) < LEAST_TRIALS_FOR_IMPORTANCE:
        return
    for column, name in enumerate(names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = plot_param_importances(
                study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                target=functools.partial(_value, column),
                target_name=name,
            )
        yield figure.update_layout(title=f"Importance of the parameters for {name} (fANOVA)", template="plotly_white")
