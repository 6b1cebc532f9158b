"""The CPU profile of a run: its CPU seconds by activity."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from search.study.budget_clock import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

# Names of the activities; studies/search_benchmark.csv has a column for each, so they stay as they are.
TABLE, SCORING = "changes alone", "one-shot scores"
BUILDING, TRAINING, MEASURING, FILES = "building", "training", "measuring", "files"
ELSE = "all else"  # Optuna, the storage, bookkeeping
PREPARING = "preparing"
# What users read where it differs from the name in the benchmark's columns.
SHOWN_NAMES = {
    TABLE: "sensitivity table", SCORING: "proxy losses", FILES: "exporting and verifying files",
    PREPARING: "imports, loading the study, and the teacher's file",
}  # fmt: skip
LEAST_SHARE_SHOWN = 0.005  # share of the CPU time; smaller activities are left out of the summary


class CpuProfile:
    """CPU seconds of this process, and of its child processes that have ended, by activity.

    They are counted from the creation of the object.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._activities = [ELSE]
        self._since = self._began = cpu_seconds()

    @contextlib.contextmanager
    def charge(self, activity: str) -> Iterator[None]:
        """Charge the CPU time inside the context to an activity, without the time of activities nested in it."""
        self._settle()
        self._activities.append(activity)
        try:
            yield
        finally:
            self._settle()
            self._activities.pop()

    def charge_since(self, start: float, activity: str) -> None:
        """Charge the CPU time from `start` to the creation of the profile to an activity."""
        self._spent[activity] = self._spent.get(activity, 0.0) + self._began - start

    @property
    def seconds(self) -> dict[str, float]:
        """CPU seconds of each activity, the largest first."""
        self._settle()
        return dict(sorted(self._spent.items(), key=lambda item: -item[1]))

    def words(self) -> str:
        """Summarize the shares in one line."""
        seconds = self.seconds
        total = max(sum(seconds.values()), 1e-9)
        parts = [
            f"{SHOWN_NAMES.get(name, name)} {value / total:.0%}"
            for name, value in seconds.items()
            if value >= LEAST_SHARE_SHOWN * total
        ]
        return f"CPU time {total:.0f} s: {', '.join(parts)}"

    def _settle(self) -> None:
        """Charge the CPU time since the last call to the innermost activity."""
        now = cpu_seconds()
        activity = self._activities[-1]
        self._spent[activity] = self._spent.get(activity, 0.0) + now - self._since
        self._since = now
