"""The progress bar of a run in a notebook: one output that changes in place and goes away at the end."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import optuna

from search.study.budget_clock import cpu_seconds
from search.study.durations import MINUTE
from search.study.front import front, trained_count
from search.study.journal import storage_at

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

    from search.study.spec import StudySpec

LOOK_AGAIN_SECONDS = 1.0  # between two looks at the trials (chosen)


class ProgressBar:
    """A context that shows how much of a budget is spent, in a notebook."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._wall, self._cpu = time.monotonic(), cpu_seconds()

    def __enter__(self) -> Self:
        """Show it."""
        self._display: Any = importlib.import_module("IPython.display")
        self._handle = self._display.display(self._display.HTML(_bar(0.0, "starting")), display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._handle.update(self._display.HTML(""))

    def follow(self, spec: StudySpec, folder: Path, storage: str | None) -> None:
        """Follow a study that is being searched; another thread reads its trials, through a storage of its own."""
        stored = storage_at(folder, storage, create=False)
        study = optuna.load_study(study_name=spec.name, storage=stored)
        self._thread = threading.Thread(target=self._look, args=(study, spec), daemon=True)
        self._thread.start()

    def _look(self, study: Study, spec: StudySpec) -> None:
        while not self._ended.wait(LOOK_AGAIN_SECONDS):
            with contextlib.suppress(Exception):  # the storage may be locked or lost, which the run itself reports
                self._handle.update(self._display.HTML(self._state(study, spec)))

    def _state(self, study: Study, spec: StudySpec) -> str:
        budget, trained = spec.budget, trained_count(study)
        seconds, shares = time.monotonic() - self._wall, [0.0]
        if budget.trials is not None:
            shares.append(trained / budget.trials)
        if budget.minutes is not None:
            shares.append(seconds / (MINUTE * budget.minutes))
        if budget.cpu_seconds is not None:
            shares.append((cpu_seconds() - self._cpu) / budget.cpu_seconds)
        words = f"{trained} trained" if budget.trials is None else f"{trained} of {budget.trials} trained"
        return _bar(min(max(shares), 1.0), f"{words}, {len(front(study))} on the front, {seconds:.0f} s")


def _bar(share: float, words: str) -> str:
    return f'<progress value="{share:.3f}" max="1"></progress> <span>{words}</span>'
