"""What changes in place on a terminal: bars of what is under way, and in a run its budget and its front."""

from __future__ import annotations

import contextlib
from threading import RLock
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from search.study.durations import SHARE_BEFORE_TIME, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType
    from rich.progress import Task

BAR_WIDTH = 16  # characters
LEFT_WIDTH = len("10 min 00 s left")
ECHO = len("^C")  # columns that are left free for what a terminal shows at Ctrl-C; it would wrap the last line
REFRESHES = 4  # per second


class _Left(ProgressColumn):
    """The time that is left, as soon as it can be known."""

    def render(self, task: Task) -> Text:
        """Return it in words."""
        if task.total is None or task.elapsed is None or not SHARE_BEFORE_TIME <= task.completed / task.total < 1:
            return Text("")
        return Text(f"{duration(task.elapsed * (task.total / task.completed - 1))} left")


class Display:
    """The lines at the end of a terminal that change in place. There is one for each process.

    Parameters
    ----------
    console
        The console of the messages; these appear above.

    Attributes
    ----------
    below
        What is shown below the bars of a frame, such as the front of a run.
    """

    below: RenderableType = ""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = RLock()
        self._depth = 0
        self._title = ""
        self._state: Callable[[], str] | None = None
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=1)),
            BarColumn(bar_width=BAR_WIDTH),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            _Left(table_column=Column(min_width=LEFT_WIDTH)),
            console=console,
            expand=True,
        )
        self._live = self._new()

    @contextlib.contextmanager
    def frame(self, title: str, state: Callable[[], str]) -> Iterator[None]:
        """Keep the lines in a frame, with a title and a line about the state that another thread asks for.

        A frame in a frame takes its place until it ends.
        """
        before = self._title, self._state
        with self._shown():
            self._title, self._state = title, state
            try:
                yield
            finally:
                self._title, self._state = before
                if self._state is None:
                    self.below = ""

    @contextlib.contextmanager
    def bar(self, activity: str, total: float | None) -> Iterator[Callable[[float], None]]:
        """Show a bar; yield a function that takes what is done of the total. Without a total the bar only moves."""
        with self._shown():
            task = self._bars.add_task(activity, total=total)
            try:
                yield lambda done: self._bars.update(task, completed=done)
            finally:
                self._bars.remove_task(task)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """Show the lines until the last activity ends."""
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._live = self._new()
                self._live.start()
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if not self._depth:
                    self._live.stop()

    def _new(self) -> Live:
        return Live(console=self._console, get_renderable=self._rendered, transient=True, refresh_per_second=REFRESHES)

    def _rendered(self) -> RenderableType:
        if self._state is None:
            return Padding(self._bars, (0, ECHO, 0, 0))
        content = Group(self._state(), self._bars, self.below)
        return Panel(content, title=self._title, title_align="left", width=self._console.width - ECHO)
