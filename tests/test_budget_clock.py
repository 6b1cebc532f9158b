"""How much of a time budget is spent."""

from __future__ import annotations

import math
import time

import pytest

from search.study.budget_clock import BudgetClock
from search.study.spec import Budget


def test_the_remaining_time_is_that_of_the_bound_that_is_reached_first() -> None:
    """10 minutes of wall time of which 9 have passed, and 100 CPU seconds of which none is spent: 60 seconds remain."""
    clock = BudgetClock(Budget(None, minutes=10, cpu_seconds=100), wall=time.monotonic() - 540)
    assert clock.left == pytest.approx(60, abs=1)
    assert clock.spent == pytest.approx(0.9, abs=0.01)
    assert clock.total == 100


def test_a_budget_that_is_exceeded_leaves_nothing() -> None:
    clock = BudgetClock(Budget(None, minutes=1), wall=time.monotonic() - 90)
    assert clock.left == 0
    assert clock.spent == pytest.approx(1.5, abs=0.01)


def test_a_budget_of_trials_has_no_time_bound() -> None:
    clock = BudgetClock(Budget(10))
    assert (clock.timed, clock.total, clock.spent, clock.left) == (False, math.inf, 0, math.inf)
