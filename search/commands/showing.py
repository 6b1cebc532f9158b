"""Show the front of a study; nothing here needs its network or its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from objectives.runtimes import named
from objectives.runtimes.names import name_of
from search.results.file_records import with_records
from search.results.goal import goal_note
from search.results.tables import files_note, front_table
from search.study.console import console, print_result, results_console
from search.study.errors import UserError
from search.study.front import need_front
from search.study.front_view import LEGEND, front_plot
from search.study.printed_tables import print_table

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from optuna import Study

    from objectives.runtimes import Runtime
    from search.results.file_records import Member
    from search.study.outline import Named, Outline


WIDEST_PLOT = 80  # columns (chosen)


def asked_runtime(options: argparse.Namespace, own: Named) -> Runtime | None:
    """Return the runtime that the options name, None if that is the study's own.

    Raises
    ------
    UserError
        If there is no such runtime.
    """
    if options.runtime in {None, name_of(own)}:
        return None
    try:
        return named(options.runtime)
    except ValueError as error:
        raise UserError(str(error)) from error


def members_of(study: Study, spec: Outline, folder: Path) -> list[Member]:
    """Return the members of the front with the verification records of their files."""
    return with_records(need_front(study, spec), spec.runtime, folder)


def show_front(
    study: Study, spec: Outline, members: list[Member], output_format: str, *, with_plans: bool = True
) -> None:
    """Print the table of the front, on a terminal a plot of it, and the notes on its files and its goal."""
    table = front_table(study, spec, members)
    print_table(table if with_plans else table.drop(columns="plan"), output_format)
    is_drawn = output_format == "table" and results_console.is_terminal
    if is_drawn and (lines := front_plot(study, spec, min(results_console.width, WIDEST_PLOT))):
        print_result("\n".join(["", *lines, LEGEND]))
    console.print(files_note(spec, members))
    if note := goal_note(study, spec, members):
        console.print(note)
