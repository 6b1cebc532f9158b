"""What a person sees while something takes long: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
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
    with bar() as progress:
        task = progress.add_task(what, total=1.0)

        def told(done: float) -> None:
            nonlocal said
            progress.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - said > EVERY_SECONDS:
                said = now
                console.print(f"{what}: {done:.0%}, {duration((now - started) * (1 / max(done, 1e-9) - 1))} left")

        yield told
    console.print(f"{what}: done in {duration(time.monotonic() - started)}")


def duration(seconds: float) -> str:
    """Word a duration: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
