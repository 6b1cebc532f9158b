"""What the benchmark of searches says of a front, against what is told by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from studies.fronts import along, hypervolume, runs_of

TEACHER = {"bops": 1000.0, "test": 90.0}


def point(bops: float, top1: float) -> dict[str, float]:
    return {"bops": bops, "test": top1}


def test_the_hypervolume_is_the_share_of_the_rectangle_that_is_dominated() -> None:
    assert hypervolume([point(1.0, 90.0)], TEACHER, "test") == pytest.approx(1.0)
    assert hypervolume([point(1000.0, 90.0)], TEACHER, "test") == pytest.approx(0.0)
    middle = point(1000.0 / math.sqrt(1000.0), 85.0)  # half as high, half as far
    assert hypervolume([middle], TEACHER, "test") == pytest.approx(0.25)
    dearer = point(100.0, 90.0)  # a third of the way, full height
    assert hypervolume([middle, dearer], TEACHER, "test") == pytest.approx(1 / 3 + (1 / 2 - 1 / 3) * 0.5)


def test_what_is_worse_than_the_floor_or_dominated_adds_nothing() -> None:
    good = [point(10.0, 88.0)]
    alone = hypervolume(good, TEACHER, "test")
    assert hypervolume([*good, point(20.0, 87.0), point(1.0, 70.0)], TEACHER, "test") == pytest.approx(alone)


def test_accuracy_at_a_share_of_the_cost_needs_every_seed() -> None:
    one = {"method": "a", "teacher": TEACHER, "points": [point(100.0, 89.0), point(10.0, 80.0)]}
    other = {"method": "a", "teacher": TEACHER, "points": [point(120.0, 87.0), point(30.0, 86.0)]}
    table = along(pd.DataFrame([one, other]))
    assert table.loc["a", "1/8"] == 88.0
    assert table.loc["a", "1/32"] == 83.0
    assert table["1/64"].isna().all()


def test_a_row_tells_of_one_run_what_a_share_of_the_cost_buys() -> None:
    front = [point(100.0, 89.123), point(10.0, 80.0)]
    split = {"teacher": TEACHER, "found": [{**each, "validation": each["test"] + 1} for each in front], "points": []}
    (row,) = runs_of(pd.DataFrame([{"method": "a", "seed": 3, **split}])).to_dict("records")
    assert (row["method"], row["seed"]) == ("a", 3)
    assert (row["test found at 1/8"], row["validation found at 1/8"]) == (89.12, 90.12)
    assert row["test found at 1/96"] == 80.0
    assert math.isnan(row["test found at 1/128"])
    assert not {"teacher", "found", "points"} & row.keys()
