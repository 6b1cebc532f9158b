"""Measures of the quality of fronts: hypervolume, accuracy at given costs, and the tables of the search benchmark."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

ACCURACY_RANGE = 10.0  # points of top-1 below the teacher at which the height of the hypervolume is zero
COST_FACTOR = 1000.0  # the teacher's cost over the cost at which the width of the hypervolume is one
SPLITS = ("validation", "test")
PROFILE_PREFIX = "seconds of "  # of the columns of a record that hold the CPU profile
SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the teacher's cost, in the comparison with peers
FRACTIONS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # of the teacher's cost: 1/8, 1/16, ...


def hypervolume(points: list[dict[str, Any]], teacher: dict[str, float], split: str) -> float:
    """Return the dominated share of the rectangle of accuracy and logarithm of cost, in [0, 1]."""
    widths = [math.log(teacher["bops"] / point["bops"]) / math.log(COST_FACTOR) for point in points]
    heights = [(point[split] - teacher[split] + ACCURACY_RANGE) / ACCURACY_RANGE for point in points]
    area, best = 0.0, 0.0
    edge = 1.0
    for width, height in sorted(zip(widths, heights, strict=True), reverse=True):  # the cheapest first
        width = min(max(width, 0.0), 1.0)  # noqa: PLW2901 - points outside of the rectangle count as on its edge
        area += best * (edge - width)
        best, edge = max(best, min(max(height, 0.0), 1.0)), width
    return area + best * edge


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Return, by method, mean and standard deviation of the hypervolumes, CPU seconds, and numbers of plans."""
    grouped = records.groupby("method")
    table = pd.DataFrame({"n": grouped.size()})
    for name in (f"{split}{suffix}" for suffix in ("_found", "") for split in SPLITS):
        table[name], table[f"{name}_std"] = grouped[name].mean().round(3), grouped[name].std().round(3)
    table[["cpu_seconds", "drafted", "trained"]] = grouped[["cpu_seconds", "drafted", "trained"]].mean().round(0)
    return table.sort_values("validation", ascending=False)


def accuracy_at_costs(records: pd.DataFrame, split: str = "test", front: str = "points") -> pd.DataFrame:
    """Return, by method, the best accuracy within a fraction of the teacher's cost: the mean over seeds.

    A cell is NaN if a front of any seed has no network that cheap.

    Parameters
    ----------
    records
        Of the runs, a row each.
    split
        The accuracies to read: validation or test.
    front
        The column of the front: `found`, as the search left it, or `points`, after the final training.
    """
    best = accuracy_at_costs_by_run(records, split, front)
    by_method = {name: best[records["method"] == name].mean(skipna=False) for name in sorted(set(records["method"]))}
    return pd.DataFrame(by_method).T.round(2)


def accuracy_at_costs_by_run(records: pd.DataFrame, split: str, front: str) -> pd.DataFrame:
    """Return the best accuracies of each run; NaN where its front has no network that cheap."""
    runs = records.to_dict("records")
    columns = {
        f"1/{fraction}": [
            max(
                (point[split] for point in run[front] if point["bops"] * fraction <= run["teacher"]["bops"]),
                default=None,
            )
            for run in runs
        ]
        for fraction in FRACTIONS
    }
    return pd.DataFrame(columns, index=records.index, dtype=float)


def runs_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return a row of plain numbers for each run: what it did, and the accuracies of its front as found."""
    found = [
        accuracy_at_costs_by_run(records, split, "found").add_prefix(f"{split} found at ").round(2) for split in SPLITS
    ]
    return pd.concat([records.drop(columns=["teacher", "found", "points"]).round(4), *found], axis=1)


def profile(records: pd.DataFrame) -> pd.DataFrame:
    """Return, by method, the CPU profile: the percentage of the search's CPU time that each activity took."""
    columns = [name for name in map(str, records) if name.startswith(PROFILE_PREFIX)]
    seconds = records.groupby("method")[columns].mean().rename(columns=lambda name: name.removeprefix(PROFILE_PREFIX))
    return (100 * seconds.div(seconds.sum(axis=1), axis=0)).dropna(how="all").fillna(0).round(1)
