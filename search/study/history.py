"""What is read from the finished trials of a study: each trial once, whenever it is found, so that no turn reads all.

A finished trial never changes. So what a turn needs of all of them, such as the front, is kept by readers, one of each
kind for each study of a storage, in the memory of the process; the storage remains the only truth.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from optuna.trial import TrialState

from search.study.attributes import content_of
from search.study.records import INEXACT, KEY, PLACE, REASON, RELATIVE, REPLAY, STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial


UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


class Reader(Protocol):
    """Keeps what it needs of the finished trials of a study."""

    def add(self, trial: FrozenTrial) -> None:
        """Read a trial that has finished; trials of several workers come in any order."""


Kind = TypeVar("Kind", bound=Reader)


def read(study: Study, kind: Callable[..., Kind], *arguments: Hashable) -> Kind:
    """Return the reader of this kind that has read all finished trials of the study.

    Parameters
    ----------
    study
        The study.
    kind, arguments
        Creates the reader, and what it is called with; of a kind, only the reader of the latest arguments is kept.
    """
    found: Kind = _history_of(study).reader(study, kind, arguments)
    return found


class _History:
    """The finished trials of a study in the order in which they were found, and their readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._found: list[FrozenTrial] = []
        self._open: list[int] = []  # numbers of known trials that have not finished
        self._known = 0  # trials, with any state
        self._readers: dict[Callable[..., Any], tuple[tuple[Hashable, ...], Reader, list[int]]] = {}

    def reader(self, study: Study, kind: Callable[..., Any], arguments: tuple[Hashable, ...]) -> Any:  # noqa: ANN401 - `read` knows it
        with self._lock:
            self._find_new(study)
            known = self._readers.get(kind)
            if known is None or known[0] != arguments:
                known = arguments, kind(*arguments), [0]
                self._readers[kind] = known
            _, reader, place = known
            for trial in self._found[place[0] :]:
                reader.add(trial)
            place[0] = len(self._found)
            return reader

    def _find_new(self, study: Study) -> None:
        trials = study.get_trials(deepcopy=False)
        if len(trials) < self._known or (self._found and not _same(trials[self._found[-1].number], self._found[-1])):
            self._forget()  # the study was deleted, and another one has its place
        candidates = [*self._open, *range(self._known, len(trials))]
        finished = [number for number in candidates if trials[number].state.is_finished()]
        self._found += [trials[number] for number in finished]
        self._open = [number for number in candidates if not trials[number].state.is_finished()]
        self._known = len(trials)


def _same(one: FrozenTrial, other: FrozenTrial) -> bool:
    return one is other or (one.datetime_complete, one.params) == (other.datetime_complete, other.params)


_HISTORIES: weakref.WeakKeyDictionary[BaseStorage, dict[int, _History]] = weakref.WeakKeyDictionary()


def _history_of(study: Study) -> _History:
    of_storage = _HISTORIES.setdefault(study._storage, {})  # noqa: SLF001 - Optuna's samplers do so too
    return of_storage.setdefault(study._study_id, _History())  # noqa: SLF001 - the name may be of a deleted study


class Finished:
    """All finished trials, by number."""

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []

    def add(self, trial: FrozenTrial) -> None:
        """Keep the trial."""
        bisect.insort(self.trials, trial, key=place)


class Trained:
    """The trained trials by number, without replays, and how many early stopping ended."""

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []
        self.stopped = 0

    def add(self, trial: FrozenTrial) -> None:
        """Keep the trial if it was trained."""
        if REPLAY not in trial.user_attrs:
            if trial.state == TrialState.COMPLETE:
                bisect.insort(self.trials, trial, key=place)
            elif trial.state == TrialState.PRUNED and STOPPED in trial.user_attrs:
                self.stopped += 1


class ByPlan:
    """The finished trials of each plan, by number."""

    def __init__(self) -> None:
        self._trials: dict[str, list[FrozenTrial]] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Keep the trial with those of its plan."""
        if KEY in trial.user_attrs:
            bisect.insort(self._trials.setdefault(trial.user_attrs[KEY], []), trial, key=place)

    def of(self, key: str) -> list[FrozenTrial]:
        """Return the trials of a plan."""
        return self._trials.get(key, [])


class Interrupted:
    """Which trials were interrupted, so that they failed without a reason."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def add(self, trial: FrozenTrial) -> None:
        """Keep the number of an interrupted trial."""
        if trial.state == TrialState.FAIL and REASON not in trial.user_attrs:
            bisect.insort(self._numbers, trial.number)

    def position(self, trial: FrozenTrial) -> int:
        """Return the position of a trial, or of the one that it runs again, among those that were not interrupted."""
        return place(trial) - bisect.bisect_left(self._numbers, place(trial))


class _Measured:
    """The trials with measurements for the cost models, by number, and the costs whose formula disagreed with one."""

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []
        self.inexact: dict[str, None] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Keep what the trial measured."""
        self.inexact |= dict.fromkeys(content_of(trial, INEXACT) or ())
        if RELATIVE in trial.user_attrs:
            bisect.insort(self.trials, trial, key=place)


def measured_trials(study: Study) -> tuple[list[str], list[FrozenTrial]]:
    """Return the costs whose formula disagreed with a measurement, and the trials with measurements for cost models.

    Those that still run come last, as far as other workers have measured them.
    """
    finished = read(study, _Measured)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    inexact = [*finished.inexact, *(name for trial in running for name in content_of(trial, INEXACT) or ())]
    return inexact, finished.trials + [trial for trial in running if RELATIVE in trial.user_attrs]


def place(trial: FrozenTrial) -> int:
    """Return the number of a trial, or of the one that it runs again: so the order is as if nothing was interrupted."""
    return int(trial.user_attrs.get(PLACE, trial.number))
