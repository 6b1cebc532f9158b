"""How much of its time budget a run has spent."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search.study.durations import MINUTE, duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from search.study.spec import Budget

# Wall and CPU time at the start of this process, before the first import: at least its CPU time ago
PROCESS_START = time.monotonic() - time.process_time(), 0.0
MAX_RESERVED_SHARE = 0.5  # share of a time bound that can be reserved, at most (chosen)
MAX_STAGE_SHARE = 0.25  # share of the time left that a stage before the trainings may take, at most (chosen)


def now() -> tuple[float, float]:
    """Return wall and CPU time, as `PROCESS_START` has them."""
    return time.monotonic(), cpu_seconds()


def passed_since(start: tuple[float, float]) -> tuple[float, float]:
    """Return the wall and CPU seconds since `now` returned this."""
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its child processes that have ended, in seconds."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


@dataclass
class BudgetClock:
    """A clock that compares the time since its creation with the budget of a run.

    Parameters
    ----------
    budget
        `minutes` is wall time; `cpu_seconds` is CPU time of this process and its child processes.
    wall
        Wall time at the start of the run, in seconds of `time.monotonic`.
    cpu
        CPU time at the start of the run, in seconds of `cpu_seconds`.
    reserved
        Seconds at the end that are kept for something else; they do not count as time of the run.
    workers
        Number of workers that share what is to be done; each has a clock and a share of the CPU time of its own.
    run
        A name of the run, the same for all its workers; empty if there is one.
    """

    budget: Budget
    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=cpu_seconds)
    reserved: float = 0.0
    workers: int = 1
    run: str = ""

    @property
    def timed(self) -> bool:
        """Whether the budget has a time bound."""
        return self.budget.minutes is not None or self.budget.cpu_seconds is not None

    @property
    def total(self) -> float:
        """The length of the run in seconds, by its tightest time bound; infinity without one."""
        return min((bound for _, bound in self._bounds()), default=float("inf"))

    @property
    def spent(self) -> float:
        """The share of the time that has passed: 0 without a time bound, above 1 once the budget is exceeded."""
        return max((passed / bound for passed, bound in self._bounds()), default=0.0)

    @property
    def left(self) -> float:
        """The remaining seconds, at least 0; infinity without a time bound."""
        return max(0.0, min((bound - passed for passed, bound in self._bounds()), default=float("inf")))

    def allowed(self, share: float) -> float:
        """Return the seconds of a stage before the trainings: a share of the time, or less if little is left."""
        return min(share * self.total, MAX_STAGE_SHARE * self.left)

    def words(self) -> list[str]:
        """Return what has passed of each time bound, in words."""
        found = []
        if self.budget.minutes is not None:
            found.append(f"{duration(time.monotonic() - self.wall)} of {duration(MINUTE * self.budget.minutes)}")
        if self.budget.cpu_seconds is not None:
            found.append(f"{cpu_seconds() - self.cpu:.0f} of {self.budget.cpu_seconds:g} CPU seconds")
        return found

    @property
    def exceeded(self) -> bool:
        """Whether more time has passed than a bound allows, with what is reserved."""
        return any(passed > bound for passed, bound in self._whole())

    def _bounds(self) -> list[tuple[float, float]]:
        """Return the seconds that have passed and the seconds of the bound without the reserve, for each time bound."""
        return [(passed, bound - min(self.reserved, MAX_RESERVED_SHARE * bound)) for passed, bound in self._whole()]

    def _whole(self) -> list[tuple[float, float]]:
        """Return the seconds that have passed and the seconds of the bound, for each time bound."""
        bounds = []
        if self.budget.minutes is not None:
            bounds.append((time.monotonic() - self.wall, MINUTE * self.budget.minutes))
        if self.budget.cpu_seconds is not None:
            bounds.append((cpu_seconds() - self.cpu, self.budget.cpu_seconds))
        return bounds


@dataclass
class Stopwatch:
    """CPU seconds that laps of one activity took, of those that it may take.

    Parameters
    ----------
    seconds
        What all laps together may take.
    """

    seconds: float
    spent: float = 0.0
    laps: int = 0

    @property
    def fits_one_more(self) -> bool:
        """Whether one more lap of the usual length fits; the first, whose length is not known, does."""
        return self.laps == 0 or self.spent * (1 + 1 / self.laps) <= self.seconds

    @contextlib.contextmanager
    def lap(self) -> Iterator[None]:
        """Measure one lap."""
        started = cpu_seconds()
        try:
            yield
        finally:
            self.spent += cpu_seconds() - started
            self.laps += 1
