"""How much of a budget is spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.study.spec import Budget


@dataclass
class BudgetClock:
    """Time that passes since it was made, against what a run may spend.

    Parameters
    ----------
    budget
        Its minutes are wall time, its seconds those of this process's CPU.
    """

    budget: Budget
    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=time.process_time)

    @property
    def timed(self) -> bool:
        """Whether time is what ends the run."""
        return self.budget.minutes is not None or self.budget.cpu_seconds is not None

    @property
    def total(self) -> float:
        """Seconds in all, infinitely many without a bound."""
        minutes = self.budget.minutes
        bounds = [None if minutes is None else 60 * minutes, self.budget.cpu_seconds]
        return min((bound for bound in bounds if bound is not None), default=float("inf"))

    @property
    def spent(self) -> float:
        """The share of the time that has passed, 0 where there is no bound, above 1 when it is over."""
        cpu_profile = [0.0]
        if self.budget.minutes is not None:
            cpu_profile.append((time.monotonic() - self.wall) / (60 * self.budget.minutes))
        if self.budget.cpu_seconds is not None:
            cpu_profile.append((time.process_time() - self.cpu) / self.budget.cpu_seconds)
        return max(cpu_profile)

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, (1 - self.spent) * self.total) if self.timed else float("inf")
