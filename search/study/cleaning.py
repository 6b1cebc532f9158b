"""Removes trained weights that nothing needs any more, and keeps the folder of a study within a size."""

from __future__ import annotations

import re
import stat
import time
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from search.study.console import console
from search.study.front import front
from search.study.marks import LEFT_SECONDS
from search.study.queue import params_of
from search.study.records import KEEP, KEY
from search.study.weights import CANDIDATES, CHECKPOINTS, CONFIRMATION, CONFIRMED, state_path, store_of_trial
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

GIGABYTE = 10**9
LEFTOVER = re.compile(r"\..+-[0-9a-f]{8}\.safetensors")  # names of unfinished files (`search.study.files.whole`)


class Cleaning:
    """Removes the weights of dominated candidates after every trial.

    Kept are those of the front; as long as it is empty, those of all candidates, since the nearest to the limits may be
    trained further; and those of a plan that waits for another training, or is in one, which continues from them.

    Parameters
    ----------
    study, folder
        The study and the folder of its files. Only files whose names are those of the study's trials are removed.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self._study, self._folder = study, folder
        self._most: float | None = study.user_attrs.get(KEEP)
        self._count, self._bytes = 0, 0
        self._told = False

    def clean(self) -> None:
        """Remove what nothing needs any more, then what the cap on the folder demands."""
        files = {
            int(path.stem): path for path in (self._folder / CANDIDATES).glob("*.safetensors") if path.stem.isdigit()
        }
        if files:
            trials = self._study.get_trials(deepcopy=False)
            members = {trial.number for trial in front(self._study)}
            for number in self._unneeded(files, trials, members):
                self._count += 1
                self._bytes += self._remove(files[number], trials[number])
        self._remove_leftovers()
        if self._most is not None and (excess := _size(self._folder) - self._most * GIGABYTE) > 0:
            self._shrink(excess)

    def report(self) -> None:
        """Print what was removed because it was dominated."""
        if self._count:
            count = number_of(self._count, "dominated candidate")
            console.print(f"removed the weights of {count}, {self._bytes / 1e6:,.1f} MB")

    def _unneeded(self, files: dict[int, Path], trials: list[FrozenTrial], members: set[int]) -> list[int]:
        """Return the numbers of the trials whose weights nothing needs."""
        pending = [trial for trial in trials if not trial.state.is_finished()]
        needed = [params_of(trial) for trial in pending]
        keys = {trial.user_attrs.get(KEY) for trial in pending} - {None}
        unneeded = []
        for number in sorted(files.keys() - members):
            trial = trials[number] if number < len(trials) else None
            if trial is None or not trial.state.is_finished():
                continue
            if trial.state != TrialState.COMPLETE or (
                members and trial.user_attrs.get(KEY) not in keys and trial.params not in needed
            ):
                unneeded.append(number)
        return unneeded

    def _remove_leftovers(self) -> None:
        """Remove files that a process left unfinished when it was killed."""
        for name in (CANDIDATES, CONFIRMED, CHECKPOINTS):
            for path in (self._folder / name).glob(".*.safetensors"):
                if LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > LEFT_SECONDS:
                    path.unlink(missing_ok=True)

    def _shrink(self, excess: float) -> None:
        """Remove what is needed least until so many bytes are free; a line says what, and whether it is enough."""
        removed, freed = [], 0
        for path, trial in self._expendable():
            if freed >= excess:
                break
            removed.append(f"{path.parent.name}/{path.name}")
            freed += self._remove(path, trial)
        if removed:
            console.print(
                f"--keep-gb {self._most:g}: removed {', '.join(removed)}, {freed / 1e6:,.1f} MB; trainings that would "
                "continue from these weights begin anew"
            )
        if freed < excess and not self._told:
            self._told = True
            console.print(
                f"the folder {self._folder} takes {(excess - freed) / 1e6:,.1f} MB more than --keep-gb {self._most:g}; "
                "what is left belongs to the front, and is kept"
            )

    def _expendable(self) -> Iterable[tuple[Path, FrozenTrial | None]]:
        """Yield the weights that the front does not need, those that are needed least first.

        First of confirmations of members that left the front, then of seeds of confirmations that are not exported,
        then of candidates: with a front all others, without one those that are farthest from the limits.
        """
        members = front(self._study)
        numbers = {trial.number for trial in members}
        confirmed = [(path, found) for path in sorted((self._folder / CONFIRMED).glob("*.safetensors"))
                     if (found := CONFIRMATION.fullmatch(path.stem))]  # fmt: skip
        yield from ((path, None) for path, found in confirmed if int(found[1]) not in numbers)
        yield from ((path, None) for path, found in confirmed if int(found[1]) in numbers and int(found[2]) > 0)
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [trial for trial in complete if trial.number not in numbers]
        others.sort(key=lambda trial: max(trial.constraints.values(), default=0.0), reverse=True)
        if not members:
            others = others[:-1]  # the nearest one is what there is of a front
        paths = ((state_path(self._folder, trial.number), trial) for trial in others)
        yield from ((path, trial) for path, trial in paths if path.exists())

    def _remove(self, path: Path, trial: FrozenTrial | None) -> int:
        """Remove a file of weights and its copy in a store; return its bytes, 0 if another worker was first."""
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        if trial is not None:
            store, digest = store_of_trial(trial)
            if store is not None:
                store.remove(digest)
        return size


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder; a file with several names, as an artifact has, counts once."""
    sizes = {}
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:  # another worker has just removed it
            continue
        if stat.S_ISREG(found.st_mode):
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
