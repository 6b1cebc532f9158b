"""What a sampler sees of a study: the trials as they were when it was asked, of a long study a representative part."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from search.study.console import console
from search.study.front import front
from search.study.history import UNFINISHED, Finished, place, read

if TYPE_CHECKING:
    from collections.abc import Container

    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, TrialState

MOST_SEEN = 400  # finished trials that a sampler sees (chosen)
OF_FRONT, OF_LATEST = 100, 150  # of these, members of the front and latest trials; the others are spread (chosen)
_said: set[str] = set()  # names of studies for which a line said that the sampler sees a part


def seen_by_sampler(study: Study, *, whole: bool) -> Study:
    """Return the study as its sampler sees it while it draws one plan.

    It has the trials of this moment, read once and not once per parameter. If more than 400 have finished, it has
    those of the front, the latest, and others spread evenly over the time before; which ones depends on the stored
    trials alone.

    Parameters
    ----------
    study
        The study.
    whole
        Whether the sampler needs all trials, as one that breeds generations.
    """
    seen = copy.copy(study)
    seen._storage = _Seen(study, whole=whole)  # type: ignore[assignment]  # noqa: SLF001 - no public way
    return seen


class _Seen:
    """The storage of a study with the trials of one moment."""

    def __init__(self, study: Study, *, whole: bool) -> None:
        self._study, self._whole = study, whole
        self._storage: BaseStorage = study._storage  # noqa: SLF001 - Optuna's samplers do so too
        self._trials: list[FrozenTrial] | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the storage has
        return getattr(self._storage, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials that the sampler sees, as Optuna's storages do."""
        if study_id != self._study._study_id:  # noqa: SLF001
            return self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        if self._trials is None:
            self._trials = self._chosen()
        found = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _chosen(self) -> list[FrozenTrial]:
        finished = read(self._study, Finished).trials
        if self._whole or len(finished) <= MOST_SEEN:
            return sorted(self._study.get_trials(deepcopy=False), key=place)
        if self._study.study_name not in _said:
            _said.add(self._study.study_name)
            console.print(
                f"the sampler sees {MOST_SEEN} of the finished trials from now on: the front, the latest, and others"
            )
        members = front(self._study)
        kept = [members[at] for at in _spread(len(members), OF_FRONT)] + finished[-OF_LATEST:]
        chosen = {trial.number: trial for trial in kept}
        before = finished[:-OF_LATEST]
        for at in _spread(len(before), MOST_SEEN - len(chosen)):
            chosen.setdefault(before[at].number, before[at])
        unfinished = self._study.get_trials(deepcopy=False, states=UNFINISHED)
        return sorted([*chosen.values(), *unfinished], key=place)


def _spread(length: int, count: int) -> list[int]:
    """Return at most `count` places of a sequence, evenly spread, the first and the last among them."""
    return sorted({round(at) for at in np.linspace(0, length - 1, min(count, length)).tolist()})
