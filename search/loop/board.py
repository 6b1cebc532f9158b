"""What a run shows of its trials: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Self

from search.study.console import EVERY_SECONDS, bar, console, duration
from search.study.front import front, trained_count

if TYPE_CHECKING:
    from optuna import Study

    from search.study.budget_clock import BudgetClock

TRIALS_BEFORE_TIME = 3  # trained trials after which the time that is left is shown (chosen)


class Board:
    """The progress of a study's trials, by all its workers.

    Parameters
    ----------
    study
        The study.
    clock
        The clock of the run's budget.
    quiet
        Whether nothing is shown, since another process shows it.

    Attributes
    ----------
    done
        Number of trained trials at the last update.
    """

    def __init__(self, study: Study, clock: BudgetClock, *, quiet: bool = False) -> None:
        self._study, self._clock, self._quiet = study, clock, quiet
        self.done = self._at_start = trained_count(study)
        self._began = clock.spent  # before this, the draft took time
        self._started = self._printed = time.monotonic()
        self._shown = -1  # trained trials in the last line
        self._exits = contextlib.ExitStack()
        self._progress = bar("best", shown=not quiet)
        self._task = self._progress.add_task("trials", total=self._total(), best="", completed=self.done)

    def __enter__(self) -> Self:
        """Show the progress bar."""
        self._exits.enter_context(self._progress)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self._exits.close()

    def count(self) -> int:
        """Count the trained trials."""
        self.done = trained_count(self._study)
        return self.done

    def share(self, share: float) -> None:
        """Show the share that is done of the trial under way."""
        self._progress.update(self._task, completed=self.done + share, total=self._total())

    def show(self) -> None:
        """Show the trained trials and the front; without a terminal, print a line of them at intervals."""
        if self._quiet:
            return
        self._progress.update(self._task, completed=self.done, total=self._total(), best=best_points(self._study))
        now = time.monotonic()
        total = self._total()
        soon = now - self._printed < EVERY_SECONDS and self.done < total - 1
        if console.is_terminal or soon or self.done == self._shown:
            return
        self._printed, self._shown = now, self.done
        new = self.done - self._at_start
        left = (now - self._started) / max(1, new) * (total - self.done)
        known = new >= TRIALS_BEFORE_TIME
        of_total = f"{self.done}/{total:.0f} trained, {duration(left)} left" if known else f"{self.done} trained"
        console.print(f"{of_total}, {best_points(self._study)}")

    def _total(self) -> float:
        """Return the estimated final number of trials."""
        new = self.done - self._at_start
        elapsed = self._clock.spent - self._began
        in_time = self.done + (1 - self._clock.spent) / elapsed * new if new and elapsed > 0 else math.inf
        total = min(in_time, math.inf if self._clock.budget.trials is None else self._clock.budget.trials)
        return max(self.done, total) if math.isfinite(total) else self.done + 1


def best_points(study: Study, count: int = 3) -> str:
    """Describe the front in words: its size, and a few members from one end to the other."""
    members = front(study)
    if not members:
        return "no feasible candidate yet"
    picked = sorted({round(i * (len(members) - 1) / max(1, count - 1)) for i in range(count)})
    points = [" / ".join(f"{value:.4g}" for value in members[index].values) for index in picked]
    return f"front of {len(members)}: {', '.join(points)}"
