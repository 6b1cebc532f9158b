"""The CPU profile charges CPU time to activities."""

from __future__ import annotations

import time

import pytest

from search.study.cpu_profile import ELSE, TRAINING, CpuProfile


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


def test_an_activity_that_fails_is_not_charged_further() -> None:
    profile = CpuProfile()
    with pytest.raises(ValueError, match="broken"), profile.charge(TRAINING):
        raise ValueError("broken")
    work(0.02)
    assert profile.seconds[ELSE] >= 0.02
