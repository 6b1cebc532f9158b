"""How much of a time budget is spent."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest

from search.study.budget_clock import BudgetClock, Stopwatch
from search.study.spec import Budget


def test_the_remaining_time_is_that_of_the_bound_that_is_reached_first() -> None:
    """10 minutes of wall time of which 9 have passed, and 100 CPU seconds of which none is spent: 60 seconds remain."""
    clock = BudgetClock(Budget(None, minutes=10, cpu_seconds=100), wall=time.monotonic() - 540)
    assert clock.left == pytest.approx(60, abs=1)
    assert clock.spent == pytest.approx(0.9, abs=0.01)
    assert clock.total == 100


def test_a_reserve_is_not_time_of_the_run_and_at_most_half_of_it() -> None:
    clock = BudgetClock(Budget(None, minutes=10), wall=time.monotonic() - 240)
    clock.reserved = 120.0
    assert clock.left == pytest.approx(240, abs=1)
    assert clock.spent == pytest.approx(0.5, abs=0.01)
    clock.reserved = 1e6
    assert clock.left == pytest.approx(60, abs=1)


def test_the_cpu_time_of_child_processes_counts() -> None:
    clock = BudgetClock(Budget(None, cpu_seconds=1.0))
    before = time.process_time()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert clock.spent - (time.process_time() - before) > 0.4


def test_a_clock_of_the_process_counts_its_imports() -> None:
    code = (
        "import time\nwhile time.process_time() < 0.4: pass\nfrom search.study.budget_clock import *\n"
        "from search import Budget\nclock = BudgetClock(Budget(None, minutes=1, cpu_seconds=60), *PROCESS_START)\n"
        "print(*[passed for passed, _ in clock._bounds()])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(float(passed) > 0.4 for passed in ran.stdout.split())


def test_laps_fit_as_long_as_their_mean_does() -> None:
    assert Stopwatch(1.0).fits_one_more
    assert not Stopwatch(1.0, spent=0.6, laps=1).fits_one_more
    assert Stopwatch(1.0, spent=0.6, laps=3).fits_one_more
    watch = Stopwatch(1.0)
    with watch.lap():
        time.sleep(0.01)
    assert watch.laps == 1


def test_a_stage_may_take_its_share_of_the_time_unless_little_is_left() -> None:
    early = BudgetClock(Budget(None, minutes=10), wall=time.monotonic())
    assert early.allowed(0.1) == pytest.approx(60)
    late = BudgetClock(Budget(None, minutes=10), wall=time.monotonic() - 500)
    assert late.allowed(0.1) == pytest.approx(25, abs=1)
    over = BudgetClock(Budget(None, minutes=10), wall=time.monotonic() - 700)
    assert over.allowed(0.1) == 0
    assert BudgetClock(Budget(10)).allowed(0.1) == math.inf


def test_a_budget_that_is_exceeded_leaves_nothing() -> None:
    clock = BudgetClock(Budget(None, minutes=1), wall=time.monotonic() - 90)
    assert clock.left == 0
    assert clock.spent == pytest.approx(1.5, abs=0.01)


def test_a_budget_of_trials_has_no_time_bound() -> None:
    clock = BudgetClock(Budget(10))
    assert (clock.timed, clock.total, clock.spent, clock.left) == (False, math.inf, 0, math.inf)
