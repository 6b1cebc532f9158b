"""Studies that several processes run: how tests start, watch and check them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from search.proposals.draft_records import draft_of
from search.study.errors import UserError
from search.study.front import front, trained, trained_count
from search.study.journal import storage_at
from search.study.records import KEY, PLAN
from tests import small_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study

ROOT = Path(__file__).parent.parent
VARIANTS = """
import dataclasses
import itertools
import sys
from search import Budget, DraftStart
from my_study import study

def drafted(trials=8, epochs=1, scored=40):
    return dataclasses.replace(study(trials, epochs=epochs), start=DraftStart(scored=scored))

def elsewhere(trials=8):
    if "--crew" in sys.argv:
        raise OSError("no such data on this machine")
    return study(trials)

def failing(trials=8):
    calls = itertools.count()

    def broken(inputs, generator):  # in trainings, and not where it is tried before
        if next(calls):
            raise ValueError("this transform is broken")
        return inputs
    spec = study(trials)
    return dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, augment=broken))
"""


@contextlib.contextmanager
def folder_of_study(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder with the file of a study; at the end no process of it may be left."""
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    (tmp_path / "variants.py").write_text(VARIANTS)
    yield tmp_path
    until = time.monotonic() + 30
    while (left := processes_in(tmp_path)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "search", *words],
        cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a command; return what it printed to standard error."""
    _, printed = process.communicate(timeout=200)
    assert process.returncode == code, printed
    assert "Traceback" not in printed
    return printed


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == folder and b"search" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def workers_in(folder: Path) -> list[int]:
    """Return the processes of the workers."""
    return [pid for pid in processes_in(folder) if b"--crew" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def opened(folder: Path, url: str | None = None) -> Study:
    """Return the study in its folder, or in the storage at a URL."""
    storage = storage_at(folder / "runs/small", url, create=False)
    return optuna.load_study(study_name="small", storage=storage)


def wait_until(condition: Callable[[], bool], seconds: float = 100) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def has_trained(folder: Path, count: int, url: str | None = None) -> Callable[[], bool]:
    """Return a function that tells whether so many candidates are trained."""

    def found() -> bool:
        try:
            return trained_count(opened(folder, url)) >= count
        except (KeyError, UserError):
            return False

    return found


def is_being_trained(folder: Path) -> bool:
    """Whether a worker is training a candidate."""
    running = opened(folder).get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return any(KEY in trial.user_attrs for trial in running)


def check(folder: Path, trials: int, url: str | None = None) -> Study:
    """Check that so many candidates were trained, each plan once, and that nothing is left over; return the study."""
    study = opened(folder, url)
    assert trained_count(study) == trials
    assert not study.get_trials(states=(TrialState.RUNNING,))
    assert max(Counter(trial.user_attrs[KEY] for trial in trained(study)).values()) == 1
    assert not list((folder / "runs/small/workers").iterdir())
    if (draft := draft_of(study)) is not None:
        assert max(Counter(trial.user_attrs[PLAN] for trial in draft.trials).values()) == 1
    assert front(study)
    return study
