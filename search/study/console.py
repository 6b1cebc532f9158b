"""Output for the user: progress bars on a terminal, progress lines elsewhere, and tables."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd


class _Console(Console):
    """A console with one switch more.

    Attributes
    ----------
    leads
        Whether this process prints the progress of work that it shares with the other workers of a run.
    """

    leads = True


# Progress and messages go to standard error, results to standard output, so that results can be piped.
console = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
results_console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
SHARE_BEFORE_TIME = 0.05  # of an activity, after which the time that is left is shown (chosen)
DONE_IN = ": done in "  # stands between an activity and its duration
EVERY_SECONDS = 20.0  # seconds between two progress lines where there is no terminal


def bar(*columns: str, shown: bool = True) -> Progress:
    """Return a progress bar that shows elapsed and remaining time, and the given task fields as text columns."""
    fields = [TextColumn(f"{{task.fields[{column}]}}") for column in columns]
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *fields,
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),  # elsewhere the callers print lines
    )


@contextlib.contextmanager
def track(activity: str) -> Iterator[Callable[[float], None]]:
    """Show the progress of one long activity; yield a function to call with the share that is done.

    A share above 1 counts as 1: an activity may take longer than it was given.
    """
    started = last_line = time.monotonic()
    with bar() as shown:
        task = shown.add_task(activity, total=1.0)

        def progress(done: float) -> None:
            nonlocal last_line
            done = min(done, 1.0)
            shown.update(task, completed=done)
            now = time.monotonic()
            if console.leads and not console.is_terminal and now - last_line > EVERY_SECONDS:
                last_line = now
                left = f", {duration((now - started) * (1 / done - 1))} left" if done >= SHARE_BEFORE_TIME else ""
                console.print(f"{activity}: {done:.0%}{left}")

        yield progress
    console.print(f"{activity}{DONE_IN}{duration(time.monotonic() - started)}")


def duration(seconds: float) -> str:
    """Format a duration: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def print_table(table: pd.DataFrame, output_format: str) -> None:
    """Print a table to standard output as `table`, `csv` or `json`; `table` lists the plans in words below it."""
    if output_format == "csv":
        sys.stdout.write(table.to_csv(index=False))
    elif output_format == "json":
        sys.stdout.write(table.to_json(orient="records", indent=1) + "\n")
    else:
        narrow = table.drop(columns=["plan"], errors="ignore")
        drawing = Table(box=None, header_style="bold", pad_edge=False)
        for name in narrow.columns:
            drawing.add_column(name, overflow="fold", justify="right" if narrow[name].dtype.kind in "fi" else "left")
        for row in narrow.itertuples(index=False):
            drawing.add_row(*(_cell(value) for value in row))
        results_console.print(drawing, crop=False)
        if "plan" in table:
            results_console.print()
            for label, plan in zip(table.iloc[:, 0], table["plan"], strict=True):
                results_console.print(f"{label}: {plan}", markup=False)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR0124, PLR2004
    return str(value)
