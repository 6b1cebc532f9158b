"""Output for the user: messages on standard error, results on standard output, and the progress of what takes long."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from threading import Event, Lock, Timer
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from search.study.durations import SHARE_BEFORE_TIME, duration
from search.study.in_place import Display
from search.study.wrapping import wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDEST = 10_000  # columns of a table where there is no terminal: all are beside each other
QUIET, USUAL, VERBOSE = -1, 0, 1  # how much is said: results and errors; messages too; details too
DONE_IN = ": done in "  # stands between an activity and its duration
EVERY_SECONDS = 20.0  # seconds between two progress lines where there is no terminal
SILENT_SECONDS = 2.0  # seconds that an activity may take before it is shown (chosen)


class _Messages(Console):
    """The console for messages. On a terminal they are wrapped between words, elsewhere they have one line each.

    Attributes
    ----------
    leads
        Whether this process prints the progress of work that it shares with the other workers of a run.
    verbosity
        How much is said: `QUIET`, `USUAL` or `VERBOSE`.
    """

    leads = True
    verbosity = USUAL

    @property
    def is_live(self) -> bool:
        """Whether lines can change in place."""
        return self.is_terminal and not self.quiet and self.verbosity > QUIET

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - the signature of rich
        """Print a message, unless only results and errors are wanted; rich itself prints what moves the cursor."""
        if not all(isinstance(each, str) for each in objects):
            super().print(*objects, **options)
        elif self.verbosity > QUIET:
            self.error(" ".join(objects))

    def error(self, text: str) -> None:
        """Print a message that is always shown."""
        super().print(wrapped(text, self.width) if self.is_terminal else text)

    def detail(self, text: str) -> None:
        """Print a message if details are wanted."""
        if self.verbosity >= VERBOSE:
            self.print(text)


# Messages go to standard error, results to standard output, so that results can be piped.
console = _Messages(stderr=True, highlight=False, markup=False, soft_wrap=True)
results_console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDEST)
display = Display(console)


def print_result(text: str) -> None:
    """Print a line of the results; on a terminal it is wrapped between words."""
    results_console.print(wrapped(text, results_console.width) if results_console.is_terminal else text)


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Keep standard output for results: what a study or a library prints there in the context goes to standard error.

    Messages are shown also while the standard error of a runtime is silenced.
    """
    with _copy_of(sys.stderr) as messages:
        results_console.file, console.file = sys.stdout, messages
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:  # again those of the moment of each line; rich has no public way
            results_console._file = console._file = None  # noqa: SLF001


@contextlib.contextmanager
def _copy_of(stream: TextIO) -> Iterator[TextIO]:
    """Yield another stream to where a stream leads; the stream itself if it leads to no file of the system."""
    try:
        number = os.dup(stream.fileno())
    except (OSError, ValueError):  # of a test or a notebook
        yield stream
        return
    with os.fdopen(number, "w", buffering=1, encoding=stream.encoding, errors=stream.errors) as copy:
        yield copy


@contextlib.contextmanager
def track(activity: str) -> Iterator[Callable[[float], None]]:
    """Show the progress of one long activity; yield a function to call with the share that is done.

    A share above 1 counts as 1: an activity may take longer than it was given.
    """
    started = last_line = time.monotonic()
    with (
        _if_slow(lambda: _line(f"{activity} ...")),
        display.bar(activity, 1.0) if console.is_live else contextlib.nullcontext(lambda _: None) as shown,
    ):

        def progress(done: float) -> None:
            nonlocal last_line
            done = min(done, 1.0)
            shown(done)
            now = time.monotonic()
            if done < 1 and now - last_line > EVERY_SECONDS:
                last_line = now
                left = f", {duration((now - started) * (1 / done - 1))} left" if done >= SHARE_BEFORE_TIME else ""
                _line(f"{activity}: {done:.0%}{left}")

        yield progress
    console.print(f"{activity}{DONE_IN}{duration(time.monotonic() - started)}")


@contextlib.contextmanager
def step(activity: str) -> Iterator[None]:
    """Show an activity of unknown length once it has taken two seconds."""
    started = time.monotonic()
    with contextlib.ExitStack() as exits:

        def show() -> None:
            if console.is_live:
                exits.enter_context(display.bar(activity, None))
            else:
                _line(f"{activity} ...")

        with _if_slow(show) as shown:
            yield
    if shown.is_set():
        _line(f"{activity}{DONE_IN}{duration(time.monotonic() - started)}")


@contextlib.contextmanager
def _if_slow(show: Callable[[], None]) -> Iterator[Event]:
    """Call a function, in a thread, once the context has taken two seconds; yield an event that is set when it is."""
    lock, over, shown = Lock(), False, Event()

    def call() -> None:
        with lock:
            if not over:
                shown.set()
                show()

    timer = Timer(SILENT_SECONDS, call)
    timer.daemon = True
    timer.start()
    try:
        yield shown
    finally:
        timer.cancel()
        with lock:
            over = True


def _line(text: str) -> None:
    """Print a line of progress where there is no terminal; of workers that share the work, one prints it."""
    if console.leads and not console.is_terminal:
        console.print(text)
