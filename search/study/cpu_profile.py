"""Where the CPU time of a run goes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE, SCORING = "changes alone", "one-shot scores"
BUILDING, TRAINING, MEASURING, FILES = "building", "training", "measuring", "files"
ELSE = "all else"  # Optuna, the storage, bookkeeping
SMALL = 0.005  # a share below it is not worth a word


class CpuProfile:
    """CPU seconds of this process by activity, from when it was made on."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._doing = [ELSE]
        self._since = time.process_time()

    @contextlib.contextmanager
    def charge(self, on: str) -> Iterator[None]:
        """Charge the time to an activity; what is done inside of another one counts for itself alone."""
        self._settle()
        self._doing.append(on)
        try:
            yield
        finally:
            self._settle()
            self._doing.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each activity, the largest first."""
        self._settle()
        return dict(sorted(self._spent.items(), key=lambda item: -item[1]))

    def words(self) -> str:
        """Say the shares in one line."""
        seconds = self.seconds
        total = max(sum(seconds.values()), 1e-9)
        parts = [f"{name} {value / total:.0%}" for name, value in seconds.items() if value >= SMALL * total]
        return f"CPU time {total:.0f} s: {', '.join(parts)}"

    def _settle(self) -> None:
        now = time.process_time()
        doing = self._doing[-1]
        self._spent[doing] = self._spent.get(doing, 0.0) + now - self._since
        self._since = now
