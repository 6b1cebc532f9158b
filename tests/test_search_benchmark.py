"""The measures of fronts in the benchmark of searches, against values computed by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from studies.fronts import accuracy_at_costs, hypervolume, runs_table

TEACHER = {"bops": 1000.0, "test": 90.0}


def point(bops: float, top1: float) -> dict[str, float]:
    return {"bops": bops, "test": top1}


def test_the_hypervolume_is_the_dominated_share_of_the_rectangle() -> None:
    assert hypervolume([point(1.0, 90.0)], TEACHER, "test") == pytest.approx(1.0)
    assert hypervolume([point(1000.0, 90.0)], TEACHER, "test") == pytest.approx(0.0)
    middle = point(1000.0 / math.sqrt(1000.0), 85.0)  # half of the height, half of the width
    assert hypervolume([middle], TEACHER, "test") == pytest.approx(0.25)
    costlier = point(100.0, 90.0)  # full height, a third of the width
    assert hypervolume([middle, costlier], TEACHER, "test") == pytest.approx(1 / 3 + (1 / 2 - 1 / 3) * 0.5)


def test_points_below_the_rectangle_and_dominated_points_add_nothing() -> None:
    good = [point(10.0, 88.0)]
    without_others = hypervolume(good, TEACHER, "test")
    assert hypervolume([*good, point(20.0, 87.0), point(1.0, 70.0)], TEACHER, "test") == pytest.approx(without_others)


def test_accuracy_at_a_cost_is_given_only_if_every_seed_has_a_network_that_cheap() -> None:
    first = {"method": "a", "teacher": TEACHER, "points": [point(100.0, 89.0), point(10.0, 80.0)]}
    second = {"method": "a", "teacher": TEACHER, "points": [point(120.0, 87.0), point(30.0, 86.0)]}
    table = accuracy_at_costs(pd.DataFrame([first, second]))
    assert table.loc["a", "1/8"] == 88.0
    assert table.loc["a", "1/32"] == 83.0
    assert table["1/64"].isna().all()


def test_a_row_of_a_run_holds_the_accuracies_of_its_front_as_found() -> None:
    front = [point(100.0, 89.123), point(10.0, 80.0)]
    found = [{**member, "validation": member["test"] + 1} for member in front]
    record = {"method": "a", "seed": 3, "teacher": TEACHER, "found": found, "points": []}
    (row,) = runs_table(pd.DataFrame([record])).to_dict("records")
    assert (row["method"], row["seed"]) == ("a", 3)
    assert (row["test found at 1/8"], row["validation found at 1/8"]) == (89.12, 90.12)
    assert row["test found at 1/96"] == 80.0
    assert math.isnan(row["test found at 1/128"])
    assert not {"teacher", "found", "points"} & row.keys()
