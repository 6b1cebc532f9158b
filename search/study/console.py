"""What a person sees on a terminal: progress bars (lines elsewhere) and tables."""

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

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
paper = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
EVERY_SECONDS = 20.0  # between two lines where there is no terminal


def bar(*columns: str) -> Progress:
    """Return a progress bar with time passed and time left, and these task fields as text columns."""
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
        disable=not console.is_terminal,  # lines are printed there instead
    )


@contextlib.contextmanager
def track(what: str) -> Iterator[Callable[[float], None]]:
    """Show how far one long act is; yields a function to call with the share that is done."""
    started = said = time.monotonic()
    with bar() as shown:
        task = shown.add_task(what, total=1.0)

        def progress(done: float) -> None:
            nonlocal said
            shown.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - said > EVERY_SECONDS:
                said = now
                console.print(f"{what}: {done:.0%}, {duration((now - started) * (1 / max(done, 1e-9) - 1))} left")

        yield progress
    console.print(f"{what}: done in {duration(time.monotonic() - started)}")


def duration(seconds: float) -> str:
    """Word a duration: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def print_table(table: pd.DataFrame, form: str) -> None:
    """Print a table to standard output, as `table`, `csv` or `json`; plans in words follow below a table."""
    if form == "csv":
        sys.stdout.write(table.to_csv(index=False))
    elif form == "json":
        sys.stdout.write(table.to_json(orient="records", indent=1) + "\n")
    else:
        wide = table.drop(columns=["plan"], errors="ignore")
        drawn = Table(box=None, header_style="bold", pad_edge=False)
        for name in wide.columns:
            drawn.add_column(name, overflow="fold", justify="right" if wide[name].dtype.kind in "fi" else "left")
        for row in wide.itertuples(index=False):
            drawn.add_row(*(_cell(value) for value in row))
        paper.print(drawn, crop=False)
        if "plan" in table:
            paper.print()
            for first, plan in zip(table.iloc[:, 0], table["plan"], strict=True):
                paper.print(f"{first}: {plan}", markup=False)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR0124, PLR2004
    return str(value)
