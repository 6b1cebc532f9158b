"""The workers of a study: which of them are alive, and which of them does what.

Every worker has a ticket in a study of its own, `<name>-workers`, in the same storage, and draws another one for each
task that only one worker may do at a time. The storage numbers tickets in the order in which they are drawn, so the
worker with the smallest number that is still held has the task. Tickets of workers that are gone do not count.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Self

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

from search.study.machine import running_system
from search.study.notes import note_study, workers_text
from search.study.records import LOCKED_ON, PULSE, RESULT, TASK, WORKER, WORKERS

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

PULSE_SECONDS = 15.0  # seconds between two pulses of a worker (chosen)
LEASE = 4  # pulses that a worker stores while another one stores none; then that one counts as gone (chosen)
KNOWN_SECONDS = 0.002  # for each worker: how long it is known of one on this machine that it lives (chosen)
POLL_SECONDS = 0.05, 1.0  # shortest and longest wait for another worker, before looking again (chosen)
PRESENT = "present"  # the task of being a worker


class Alone:
    """A process that works without others: it has every task at once."""

    name = "alone"

    def ahead(self) -> int:
        """Return 0: no other worker is ahead."""
        return 0

    @contextlib.contextmanager
    def ticket(self, task: str) -> Iterator[Alone]:  # noqa: ARG002
        """Hold a ticket for a task."""
        yield self

    @contextlib.contextmanager
    def turn(self, task: str) -> Iterator[None]:  # noqa: ARG002
        """Have the task."""
        yield

    def share(self, tasks: Sequence[str], work: Callable[[int], Any]) -> dict[str, Any]:
        """Do the tasks, until one has no result; return the results."""
        results = itertools.takewhile(lambda result: result is not None, map(work, range(len(tasks))))
        return dict(zip(tasks, results, strict=False))


class Ticket:
    """A place in the line for a task.

    Parameters
    ----------
    workers
        The worker that draws it.
    task
        Name of the task.
    """

    def __init__(self, workers: Workers, task: str) -> None:
        self._workers, self._task = workers, task
        self._trial_id = workers.draw(task)

    def ahead(self) -> int:
        """Return how many living workers hold an earlier ticket for the task; 0 for the one whose turn it is."""
        return sum(trial._trial_id < self._trial_id for trial in self._workers.held(self._task))  # noqa: SLF001

    def give_back(self, result: Any = None) -> None:  # noqa: ANN401 - JSON
        """Let others have the task, or record its result; another worker may have taken it from one that stalled."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._workers.finish(self._trial_id, result)


class Workers:
    """The workers of a study, as seen by one of them.

    A worker counts as gone once its pulse has not changed for a minute, counted in the pulses of the worker that looks:
    no clock is read, so none can be wrong, and while the storage cannot be reached nobody counts. On the same machine
    it counts as gone at once: each worker holds a lock of the operating system on a file in the folder of the study,
    which ends with its process.

    Parameters
    ----------
    study
        The study.
    folder
        The folder of its files.

    Attributes
    ----------
    name
        The name of this worker, used by no other process.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder / "workers"
        self._storage = study._storage  # noqa: SLF001 - Optuna's samplers do so too
        self._study = optuna.create_study(
            storage=self._storage, study_name=study.study_name + WORKERS, load_if_exists=True
        )
        note_study(self._study, workers_text(study.study_name))
        self._stored = 0  # own pulses that reached the storage
        self._seen: dict[str, tuple[int, int]] = {}  # pulse of each worker, and own ones when it was first seen
        self._living: dict[str, float] = {}  # when the lock of each worker on this machine was last seen to be held
        self._lock = FileLock(self._folder / self.name, thread_local=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._own = -1

    def __enter__(self) -> Self:
        """Join the workers of the study."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self._own = self.draw(PRESENT)
        self._thread.start()
        self.held(PRESENT)  # buries the workers that are gone, which had no task that anybody waited for
        return self

    def __exit__(self, *_: object) -> None:
        """Leave them."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(UpdateFinishedTrialError):
            self.finish(self._own)
        self._lock.release()
        (self._folder / self.name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def ticket(self, task: str) -> Iterator[Ticket]:
        """Hold a ticket for a task."""
        drawn = Ticket(self, task)
        try:
            yield drawn
        finally:
            drawn.give_back()

    @contextlib.contextmanager
    def turn(self, task: str) -> Iterator[None]:
        """Wait until no other worker does the task, and keep them from it; it must look first whether it is done."""
        with self.ticket(task) as ticket:
            for _ in waits():
                if not ticket.ahead():
                    break
            yield

    def share(self, tasks: Sequence[str], work: Callable[[int], Any]) -> dict[str, Any]:
        """Do tasks together with the other workers, each task once; return the results that there are in the end.

        Parameters
        ----------
        tasks
            Names of the tasks, in the order of their importance.
        work
            Does the task at a position and returns its result, as JSON; None if there is no time for it.
        """
        for _ in waits():
            results = self._results(tasks)
            others = False
            for at, task in enumerate(tasks):
                if task in results:
                    continue
                ticket = Ticket(self, task)
                result = None
                try:
                    if ticket.ahead():
                        others = True
                        continue
                    if task in (known := self._results(tasks)):  # another worker has just finished it
                        results = known
                        continue
                    result = work(at)
                finally:
                    ticket.give_back(result)
                if result is None:
                    break
                results[task] = result
            if not others:
                break
        return self._results(tasks)

    def living(self) -> set[str]:
        """Return the names of the workers that have not left or died."""
        return {self.name, *(trial.user_attrs[WORKER] for trial in self.held(PRESENT))}

    def held(self, task: str) -> list[FrozenTrial]:
        """Return the tickets for a task that living workers hold; the tickets of others are taken from them."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        present = {trial.user_attrs[WORKER]: trial for trial in running if trial.user_attrs[TASK] == PRESENT}
        wanted = [trial for trial in running if trial.user_attrs[TASK] == task]
        held = []
        for trial in wanted:
            owner = trial.user_attrs[WORKER]
            if owner == self.name or (owner in present and self._is_alive(present[owner], len(present))):
                held.append(trial)
            else:
                for taken in (trial, *([present[owner]] if owner in present else [])):
                    with contextlib.suppress(UpdateFinishedTrialError):
                        self.finish(taken._trial_id)  # noqa: SLF001
        return held

    def draw(self, task: str) -> int:
        """Draw a ticket; return its number in the storage."""
        attributes: dict[str, Any] = {TASK: task, WORKER: self.name}
        if task == PRESENT:
            attributes |= {LOCKED_ON: running_system(), PULSE: 0}
        return self._storage.create_new_trial(
            self._study._study_id,  # noqa: SLF001
            create_trial(state=TrialState.RUNNING, user_attrs=attributes),
        )

    def finish(self, trial_id: int, result: Any = None) -> None:  # noqa: ANN401 - JSON
        """Finish a ticket; one with a result is complete."""
        if result is not None:
            self._storage.set_trial_user_attr(trial_id, RESULT, result)
        state = TrialState.FAIL if result is None else TrialState.COMPLETE
        self._storage.set_trial_state_values(trial_id, state, None if result is None else [0.0])

    def _results(self, tasks: Sequence[str]) -> dict[str, Any]:
        """Return the results of tasks that are done."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        known = {trial.user_attrs[TASK]: trial.user_attrs[RESULT] for trial in reversed(done)}
        return {task: known[task] for task in tasks if task in known}

    def _is_alive(self, present: FrozenTrial, count: int) -> bool:
        """Return whether a worker is alive, from its ticket of being present and the number of workers."""
        name, pulse = present.user_attrs[WORKER], present.user_attrs[PULSE]
        if time.monotonic() - self._living.get(name, -math.inf) < KNOWN_SECONDS * count:
            return True
        path = self._folder / name
        if present.user_attrs[LOCKED_ON] == running_system() and path.exists():
            if _is_locked(path):
                self._living[name] = time.monotonic()
                return True
            path.unlink(missing_ok=True)
            return False
        if self._seen.get(name, (None,))[0] != pulse:
            self._seen[name] = pulse, self._stored
        return self._stored - self._seen[name][1] < LEASE

    def _beat(self) -> None:
        """Record a pulse now and then, until this worker leaves."""
        pulse = 0
        while not self._stop.wait(PULSE_SECONDS):
            pulse += 1
            try:
                self._storage.set_trial_user_attr(self._own, PULSE, pulse)
            except UpdateFinishedTrialError:  # it had stalled, and others took it for gone
                self._own = self.draw(PRESENT)
            except Exception:  # noqa: BLE001, S112 - the main thread uses the same storage and reports its faults
                continue
            self._stored += 1


def _is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file; as `FileLock` does, which takes ten times as long."""
    if sys.platform != "win32":
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at once; closing gives it back
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        except OSError:  # a file system without such locks, where `FileLock` has its own way
            pass
        else:
            return False
    try:
        with FileLock(path, thread_local=False).acquire(timeout=0):
            return False
    except Timeout:
        return True


def waits() -> Iterator[None]:
    """Yield at once, and again after ever longer waits."""
    seconds, longest = POLL_SECONDS
    while True:
        yield
        time.sleep(seconds)
        seconds = min(1.5 * seconds, longest)
