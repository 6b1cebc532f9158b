"""Picking a member of the front by a number, the knee or a sentence."""

from __future__ import annotations

import dataclasses

import optuna
import pytest

from objectives import Limit, Macs, SizeBytes, Top1
from search.results.pick import knee, pick
from search.study.errors import UserError
from search.study.records import VALUES
from tests.small_study import splits, study

MACS = Macs(splits().validation.inputs)
SPEC = dataclasses.replace(
    study(), objectives=(Top1(splits().validation), SizeBytes()), limits=(Limit(MACS, at_most=1e6),)
)


@pytest.fixture
def found() -> optuna.Study:
    """Return a study with three members of the front and a dominated trial."""
    study_of = optuna.create_study(directions=["maximize", "minimize"])
    for top1, size, macs in ((95, 30000, 9e5), (90, 20000, 5e5), (60, 10000, 6e5), (50, 40000, 1e5)):
        values = {"top1": top1, "size_bytes": size, "macs": macs}
        study_of.add_trial(optuna.trial.create_trial(values=[top1, size], user_attrs={VALUES: values}))
    return study_of


@pytest.mark.parametrize(
    ("selection", "number"),
    [
        ("knee", 1),
        ("2", 2),
        (" 0 ", 0),
        ("max top1", 0),
        ("min size_bytes", 2),
        ("max top1 where size_bytes<=20000", 1),
        ("max top1 where size_bytes < 20000", 2),
        ("MAX top1 where size_bytes<=2e4", 1),
        ("min size_bytes where top1>=90", 1),
        ("min size_bytes where top1>90", 0),
        ("max top1 where size_bytes<=30000 and macs<6e5", 1),
        ("min macs", 1),
    ],
)
def test_a_selection_picks_a_member(found: optuna.Study, selection: str, number: int) -> None:
    assert pick(found, SPEC, selection).number == number


@pytest.mark.parametrize(
    ("selection", "error"),
    [
        ("3", "trial 3 is not on the front; its members are 0, 1, 2"),
        ("99", "trial 99 is not on the front"),
        (
            "-1",
            (
                r"a pick must be 'knee', the number of a trial, or 'max NAME' or 'min NAME', optionally followed by "
                r"'where NAME<=VALUE \[and \.\.\.\]', but got '-1'"
            ),
        ),
        ("best", "a pick must be 'knee', the number of a trial"),
        ("max top1 where", "a pick must be 'knee', the number of a trial"),
        ("max top2", "no objective is called 'top2'; the nearest are: top1"),
        ("max top1 where size<=3", "no objective is called 'size'; the nearest are: size_bytes"),
        (
            "max top1 where size_bytes<=20kB",
            "a condition must be of the form size_bytes<=20000, but got 'size_bytes<=20kB'",
        ),
        ("max top1 where size_bytes=20", "a condition must be of the form size_bytes<=20000"),
        (
            "max top1 where size_bytes<=9000",
            "no member of the front has size_bytes<=9000; the nearest is trial 2 with size_bytes 10000",
        ),
        (
            "max top1 where top1>=95 and size_bytes<=20000",
            "no member of the front has size_bytes<=20000; the nearest is trial 0 with size_bytes 30000",
        ),
    ],
)
def test_a_selection_that_fits_no_member_is_an_error(found: optuna.Study, selection: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        pick(found, SPEC, selection)


def test_the_knee_is_nearest_to_the_ideal_point() -> None:
    values = [(100.0, 9.0), (90.0, 4.0), (0.0, 1.0)]
    # scaled distances: 1; hypot(0.1, 3/8); 1
    assert knee(values, [-1, 1]) == 1
    assert knee([(1.0, 9.0), (8.5, 8.5), (9.0, 0.0)], [1, 1]) == 0


def test_a_wide_range_of_costs_is_scaled_logarithmically() -> None:
    values = [(100.0, 10000.0), (90.0, 1500.0), (80.0, 100.0), (0.0, 10.0)]
    # on a linear scale the second point would win: hypot(0.1, 0.149) = 0.179 against hypot(0.2, 0.009) = 0.200;
    # on the logarithmic scale the third point wins
    assert knee(values, [-1, 1]) == 2


def test_the_knee_is_defined_for_one_member_and_for_equal_values() -> None:
    assert knee([(3.0, 4.0)], [-1, 1]) == 0
    assert knee([(3.0, 4.0), (3.0, 2.0)], [-1, 1]) == 1


def test_costs_of_zero_and_below_are_scaled_linearly() -> None:
    assert knee([(1.5, 0.0), (2.0, 100.0), (0.0, -5.0)], [-1, 1]) == 0
