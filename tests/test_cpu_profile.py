"""The CPU time of a run is charged to what it does."""

from __future__ import annotations

import time

import pytest

from search.study.cpu_profile import ELSE, TRAINING, CpuProfile


def work(seconds: float) -> None:
    """Use so much CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_is_done_inside_of_another_activity_counts_for_itself() -> None:
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


def test_an_activity_that_fails_ends() -> None:
    profile = CpuProfile()
    with pytest.raises(ValueError, match="broken"), profile.charge(TRAINING):
        raise ValueError("broken")
    work(0.02)
    assert profile.seconds[ELSE] >= 0.02
