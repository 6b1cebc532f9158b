"""How good fronts are: the hypervolume, accuracy along the cost, and the tables of a benchmark of searches."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

DEPTH, FACTOR = 10.0, 1000.0  # points of accuracy and factor of cost that span the hypervolume
SPLITS = ("validation", "test")
SHARE = "seconds of "  # the profile: what of a record's columns is time by activity
PARTS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # of the teacher's cost, at which accuracies are compared


def hypervolume(points: list[dict[str, Any]], teacher: dict[str, float], split: str) -> float:
    """Return the share of the rectangle of accuracy and logarithm of cost that the points dominate, in [0, 1]."""
    places = [math.log(teacher["bops"] / point["bops"]) / math.log(FACTOR) for point in points]
    heights = [(point[split] - teacher[split] + DEPTH) / DEPTH for point in points]
    area, best = 0.0, 0.0
    edge = 1.0
    for place, height in sorted(zip(places, heights, strict=True), reverse=True):  # the cheapest first
        place = min(max(place, 0.0), 1.0)  # noqa: PLW2901 - what lies outside counts as on the edge
        area += best * (edge - place)
        best, edge = max(best, min(max(height, 0.0), 1.0)), place
    return area + best * edge


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Return, by method, mean and deviation of the hypervolumes, and what was done in the time."""
    grouped = records.groupby("method")
    table = pd.DataFrame({"n": grouped.size()})
    for name in (f"{split}{when}" for when in ("_found", "") for split in SPLITS):
        table[name], table[f"{name}_std"] = grouped[name].mean().round(3), grouped[name].std().round(3)
    table[["cpu_seconds", "drafted", "trained"]] = grouped[["cpu_seconds", "drafted", "trained"]].mean().round(0)
    return table.sort_values("validation", ascending=False)


def along(records: pd.DataFrame, split: str = "test", when: str = "points") -> pd.DataFrame:
    """Return, by method, the best accuracy that a share of the cost buys, mean over seeds that all have one."""
    best = each_along(records, split, when)
    by_method = {name: best[records["method"] == name].mean(skipna=False) for name in sorted(set(records["method"]))}
    return pd.DataFrame(by_method).T.round(2)


def each_along(records: pd.DataFrame, split: str, when: str) -> pd.DataFrame:
    """Return the same, by run; NaN where a front has nothing as cheap."""
    runs = records.to_dict("records")
    columns = {
        f"1/{part}": [
            max((point[split] for point in run[when] if point["bops"] * part <= run["teacher"]["bops"]), default=None)
            for run in runs
        ]
        for part in PARTS
    }
    return pd.DataFrame(columns, index=records.index, dtype=float)


def runs_of(records: pd.DataFrame) -> pd.DataFrame:
    """Return a row a run, of plain numbers: what it did, and how good its front was as found."""
    found = [each_along(records, split, "found").add_prefix(f"{split} found at ").round(2) for split in SPLITS]
    return pd.concat([records.drop(columns=["teacher", "found", "points"]).round(4), *found], axis=1)


def profile(records: pd.DataFrame) -> pd.DataFrame:
    """Return the share of the search's CPU time that each activity took, in percent, by method."""
    columns = [name for name in map(str, records) if name.startswith(SHARE)]
    seconds = records.groupby("method")[columns].mean().rename(columns=lambda name: name.removeprefix(SHARE))
    return (100 * seconds.div(seconds.sum(axis=1), axis=0)).dropna(how="all").fillna(0).round(1)
