"""Bad input of every kind ends with one clear line: nothing breaks, hangs, is executed, or touches a file of a user."""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzzing import CASES, template

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

QUICK = {"stored files": 60, "command lines": 60, "studies": 30, "plans": 50}
MANY = {"stored files": 750, "command lines": 600, "studies": 350, "plans": 400}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a study that was run, confirmed and exported."""
    folder = tmp_path_factory.mktemp("made")
    template(folder)
    return folder


def check(kind: str, count: int, made: Path, folder: Path) -> None:
    """Try so many cases of a kind."""
    numbers = itertools.count()

    @settings(
        max_examples=count, deadline=None, suppress_health_check=[*HealthCheck], phases=[Phase.generate],
        derandomize=True, database=None,
    )  # fmt: skip
    @given(st.randoms(use_true_random=True))
    def is_sound(random: Random) -> None:
        place = folder / str(next(numbers))
        outcome = CASES[kind](random, made, place)
        shutil.rmtree(place, ignore_errors=True)
        assert not outcome.fault, (outcome.words, outcome.printed)

    is_sound()
    assert next(numbers) >= count


@pytest.mark.parametrize("kind", CASES)
def test_bad_input_ends_with_one_line(kind: str, made: Path, tmp_path: Path) -> None:
    check(kind, QUICK[kind], made, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", CASES)
def test_much_bad_input_ends_with_one_line(kind: str, made: Path, tmp_path: Path) -> None:
    check(kind, MANY[kind], made, tmp_path)


def test_there_are_enough_cases() -> None:
    assert sum(QUICK.values()) >= 200
    assert sum(MANY.values()) >= 2000
