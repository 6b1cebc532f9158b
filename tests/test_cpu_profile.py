"""The CPU profile charges CPU time to activities."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from search.study.budget_clock import cpu_seconds
from search.study.cpu_profile import ELSE, PREPARING, TRAINING, CpuProfile


def work(seconds: float) -> None:
    """Use CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_nested_activity_is_charged_for_its_own_time() -> None:
    profile = CpuProfile()
    work(0.02)
    with profile.charge(TRAINING):
        work(0.04)
        with profile.charge("measuring"):
            work(0.08)
        work(0.04)
    assert profile.seconds == pytest.approx({"measuring": 0.08, TRAINING: 0.08, ELSE: 0.02}, rel=0.2)
    words = profile.words()
    assert words.startswith("CPU time 0 s: ")
    assert {part.rpartition(" ")[0] for part in words.partition(": ")[2].split(", ")} == {"measuring", TRAINING, ELSE}


def test_time_before_the_profile_and_in_child_processes_counts() -> None:
    start = cpu_seconds()
    work(0.05)
    profile = CpuProfile()
    with profile.charge("measuring"):
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    profile.charge_since(start, PREPARING)
    assert profile.seconds[PREPARING] == pytest.approx(0.05, abs=0.02)
    assert profile.seconds["measuring"] > 0.2
    assert "imports, loading the study, and the teacher's file" in profile.words()


def test_an_activity_that_fails_is_not_charged_further() -> None:
    profile = CpuProfile()
    with pytest.raises(ValueError, match="broken"), profile.charge(TRAINING):
        raise ValueError("broken")
    work(0.02)
    assert profile.seconds[ELSE] >= 0.02
