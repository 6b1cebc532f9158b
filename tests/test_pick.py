"""Picking a member of the front by the goal, a number, the knee or a sentence about the columns of its table."""

from __future__ import annotations

import dataclasses
from typing import Any

import optuna
import pytest

from objectives import Limit, Macs, SizeBytes, Top1
from search.results.file_records import Member
from search.results.pick import knee, pick
from search.study.attributes import keyed
from search.study.errors import UserError
from search.study.front import front
from search.study.records import EXCESS, PLAN, VALUES
from tests.small_study import splits, study

MACS = Macs(splits().validation.inputs)
SPEC = dataclasses.replace(
    study(), objectives=(Top1(splits().validation), SizeBytes()), limits=(Limit(MACS, at_most=1e6),)
)


def record(top1: float, size: int, milliseconds: float) -> dict[str, Any]:
    return {
        "top1_file": top1, "file_bytes": size, "teacher_file_bytes": 90_000, "agreement_percent": 100 - size / 30_000,
        "latency": {"ratio": milliseconds / 2, "cpu_ms": milliseconds},
    }  # fmt: skip


@pytest.fixture
def found() -> optuna.Study:
    """Return a study with three members of the front and a dominated trial."""
    study_of = optuna.create_study(directions=["maximize", "minimize"])
    for top1, size, macs in ((95, 30000, 9e5), (90, 20000, 5e5), (60, 10000, 6e5), (50, 40000, 1e5)):
        values = {"top1": top1, "size_bytes": size, "macs": macs}
        excess = {"macs <= 1e+06": macs / 1e6 - 1}
        attributes = {PLAN: "nothing removed"} | keyed(VALUES, values) | keyed(EXCESS, excess)
        study_of.add_trial(optuna.trial.create_trial(values=[top1, size], user_attrs=attributes))
    return study_of


def members(found: optuna.Study) -> list[Member]:
    """Return the members of the front; the file of trial 1 is faster than its size suggests, trial 2 has no file."""
    files = {0: record(94, 30_100, 0.9), 1: record(91, 19_900, 0.2), 2: {}}
    return [Member(trial, files[trial.number]) for trial in front(found)]


@pytest.mark.parametrize(
    ("selection", "number"),
    [
        ("knee", 1),
        ("2", 2),
        (" 0 ", 0),
        ("goal", 1),
        ("max top1", 0),
        ("min size_bytes", 2),
        ("max top1 where size_bytes<=20000", 1),
        ("max top1 where size_bytes < 20000", 2),
        ("MAX top1 where size_bytes<=2e4", 1),
        ("min size_bytes where top1>=90", 1),
        ("min size_bytes where top1>90", 0),
        ("max top1 where size_bytes<=30000 and macs<6e5", 1),
        ("min macs", 1),
        ("min file_bytes", 1),
        ("min file_latency_ms", 1),
        ("max latency_ms", 0),
        ("max top1 where size_bytes<=30000 and latency_ms<=0.5", 1),
        ("max file_top1 where latency_ratio<0.3", 1),
        ("max agreement_percent", 1),
        ("max size_bytes where bytes < 20000", 1),
        ("min size_bytes where file_feasible=yes", 1),
        ("min size_bytes where file_front = YES AND top1>=95", 0),
        ("max top1 where feasible=yes and trial>=1", 1),
        ("max trial", 2),
        ("max top1 where size_bytes=10000", 2),
    ],
)
def test_a_selection_picks_a_member(found: optuna.Study, selection: str, number: int) -> None:
    assert pick(found, SPEC, members(found), selection).number == number


COLUMNS = (
    "trial, top1, size_bytes, macs, file_top1, agreement_percent, file_bytes, file_latency_ms, latency_ratio, "
    "file_front, file_feasible, feasible"
)


@pytest.mark.parametrize(
    ("selection", "error"),
    [
        ("3", "trial 3 is not on the front; its members are 0, 1, 2"),
        ("99", "trial 99 is not on the front"),
        (
            "-1",
            (
                r"a pick must be 'goal', 'knee', the number of a trial, or 'max NAME' or 'min NAME', optionally "
                r"followed by 'where NAME<=VALUE \[and \.\.\.\]', but got '-1'"
            ),
        ),
        ("best", "a pick must be 'goal', 'knee', the number of a trial"),
        ("max top1 where", "a pick must be 'goal', 'knee', the number of a trial"),
        (
            "max top2",
            f"no column of the front is called 'top2'; the nearest are: top1, file_top1; all columns: {COLUMNS}",
        ),
        (
            "max top1 where size<=3",
            f"is called 'size'; the nearest are: size_bytes, feasible, file_feasible; all columns: {COLUMNS}",
        ),
        (
            "max top1 where size_bytes<=20kB",
            "a condition must be of the form size_bytes<=20000, but got 'size_bytes<=20kB'",
        ),
        ("max top1 where size_bytes", "a condition must be of the form size_bytes<=20000"),
        ("max top1 where size_bytes=small", "a condition must be of the form size_bytes<=20000"),
        (
            "max top1 where size_bytes<=9000",
            "no member of the front has size_bytes<=9000; the nearest is trial 2 with size_bytes 10000",
        ),
        (
            "max top1 where top1>=95 and size_bytes<=20000",
            "no member of the front has size_bytes<=20000; the nearest is trial 0 with size_bytes 30000",
        ),
        (
            "max top1 where latency_ms<=0.1",
            "no member of the front has latency_ms<=0.1; the nearest is trial 1 with file_latency_ms 0.2",
        ),
        ("max top1 where feasible=no", "no member of the front has feasible=no; feasible is yes"),
        ("max top1 where feasible<=3", "the column feasible holds words, so only a condition such as feasible=yes"),
        ("max file_front", "the column file_front holds words"),
    ],
)
def test_a_selection_that_fits_no_member_is_an_error(found: optuna.Study, selection: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        pick(found, SPEC, members(found), selection)


def test_a_column_without_values_is_an_error_that_says_how_to_measure_it(found: optuna.Study) -> None:
    unverified = [Member(trial, {}) for trial in front(found)]
    message = "no member has a value in the column file_latency_ms yet; verify the files first: slimfront confirm"
    with pytest.raises(UserError, match=message):
        pick(found, SPEC, unverified, "max top1 where latency_ms<=0.5")


def test_without_a_goal_or_limits_no_member_meets_them_best(found: optuna.Study) -> None:
    free = dataclasses.replace(SPEC, limits=(), reported=(MACS,))
    with pytest.raises(UserError, match="the study 'small' has no goal and no limits, so no member meets them best"):
        pick(found, free, members(found), "goal")


def test_the_knee_goes_by_what_the_files_measured(found: optuna.Study) -> None:
    """After `confirm` a file has other weights than the search, and may be beaten by another file."""
    searched, confirmed = record(90, 20_000, 0.2), record(59, 20_000, 0.2)
    for of_trial_1, number in ((searched, 1), (confirmed, 2)):
        files = {0: record(60, 30_000, 0.9), 1: of_trial_1, 2: record(60, 10_000, 0.1)}
        assert (
            pick(found, SPEC, [Member(trial, files[trial.number]) for trial in front(found)], "knee").number == number
        )


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
