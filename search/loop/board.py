"""What a run shows of its trials: a view that changes in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Self

from search.study.console import EVERY_SECONDS, console, display
from search.study.durations import duration
from search.study.front import front, trained_count
from search.study.front_view import front_view, spread
from search.study.outline import stored_outline
from search.study.printed_tables import short
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study

    from search.study.budget_clock import BudgetClock
    from search.study.outline import Outline

TRIALS_BEFORE_TIME = 3  # trained trials after which the time that is left is shown (chosen)
FRAME = 6  # columns that a frame takes


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
        self._outline = stored_outline(study)
        self.done = self._at_start = trained_count(study)
        self._began = clock.spent  # before this, the draft took time
        self._started = self._printed = time.monotonic()
        self._shown = -1  # trained trials in the last line
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Show the state of the budget, and the front if there is one already."""
        if console.is_live and not self._quiet:
            self._exits.enter_context(display.frame(f"study {self._study.study_name}", self.state))
            self._show_front()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove both."""
        self._exits.close()

    @contextlib.contextmanager
    def trial(self, number: int) -> Iterator[Callable[[float], None]]:
        """Show that a trial is under way; yield a function to call with the share of it that is done."""
        shown = console.is_live and not self._quiet
        with display.bar(f"training trial {number}", 1.0) if shown else contextlib.nullcontext(lambda _: None) as share:
            yield share

    def count(self) -> int:
        """Count the trained trials."""
        self.done = trained_count(self._study)
        return self.done

    def state(self) -> str:
        """Describe what of the budget is spent, and what is left of it as soon as that is known."""
        trials = self._clock.budget.trials
        parts = [number_of(self.done, "candidate"), *self._clock.words()]
        if trials is not None:
            parts[0] = f"{self.done} of {number_of(trials, 'candidate')}"
        if (left := self._left(time.monotonic())) is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def show(self) -> None:
        """Show the trained trials and the front; without a terminal, print a line of them at intervals."""
        if self._quiet:
            return
        if console.is_live:
            self._show_front()
            return
        now, total = time.monotonic(), self._total()
        soon = now - self._printed < EVERY_SECONDS and self.done < total - 1
        if soon or self.done == self._shown:
            return
        self._printed, self._shown = now, self.done
        left, new = self._left(now), self.done - self._at_start
        of_total = number_of(self.done, "candidate")
        if new >= TRIALS_BEFORE_TIME:
            of_total = f"{self.done}/{number_of(round(total), 'candidate')}"
        of_total += "" if left is None else f", {duration(left)} left"
        console.print(f"{of_total}, {best_points(self._study, self._outline)}")

    def _show_front(self) -> None:
        if self._outline is not None:
            display.below = front_view(self._study, self._outline, console.width - FRAME)

    def _left(self, now: float) -> float | None:
        """Return the seconds that are left; None until enough trials were trained to tell, and after the last one."""
        new, total = self.done - self._at_start, self._total()
        if new < TRIALS_BEFORE_TIME or total <= self.done:
            return None
        return (now - self._started) / new * (total - self.done)

    def _total(self) -> float:
        """Return the estimated final number of trials."""
        new = self.done - self._at_start
        elapsed = self._clock.spent - self._began
        in_time = self.done + (1 - self._clock.spent) / elapsed * new if new and elapsed > 0 else math.inf
        total = min(in_time, math.inf if self._clock.budget.trials is None else self._clock.budget.trials)
        return max(self.done, total) if math.isfinite(total) else self.done + 1


def best_points(study: Study, outline: Outline | None, count: int = 3) -> str:
    """Describe the front in words: its size, and a few members from one end to the other."""
    members = front(study)
    if not members:
        return "no feasible candidate yet"
    picked = spread(members, count)
    names = [objective.name for objective in outline.objectives] if outline else [""] * len(study.directions)
    points = [" / ".join(map(short, trial.values, names)) for trial in picked]
    others = ", among them" if len(picked) < len(members) else ""
    return f"front of {len(members)} ({' / '.join(names)}){others}: {', '.join(points)}"
