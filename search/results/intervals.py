"""Intervals of what was measured on a number of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import scipy.stats

from objectives import Agreement, Top1, TopK

if TYPE_CHECKING:
    from objectives import Objective

CONFIDENCE = 0.95


def of_share(percent: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a percentage of `count` examples (Wilson 1927, JASA 22, 209-212), in percent."""
    right = round(percent / 100 * count)
    found = scipy.stats.binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * found.low, 100 * found.high


def is_share(metric: Objective) -> bool:
    """Whether a metric is a percentage of examples, each right or wrong, so that it has such an interval."""
    return isinstance(metric, Top1 | TopK | Agreement)
