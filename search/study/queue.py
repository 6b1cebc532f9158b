"""The queue of enqueued plans, and the workers that run them."""

from __future__ import annotations

import os
import socket
import warnings
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from search.study.records import ASKED, WORKER

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def worker() -> str:
    """Return a name of this process, by which another process can check whether it is still alive."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_other_live_worker(name: str) -> bool:
    """Return whether a worker is another process that is alive; one on another machine counts as alive."""
    host, _, pid = name.rpartition(":")
    return name != worker() and (host != socket.gethostname() or _alive(int(pid)))


def requeue_abandoned(study: Study) -> int:
    """Fail the trials whose process on this machine has ended, and enqueue their plans again; return their number."""
    requeued = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = trial.user_attrs.get(WORKER, ":").rpartition(":")
        if host == socket.gethostname() and not _alive(int(pid)):
            study.tell(trial.number, state=TrialState.FAIL)
            enqueue(study, params_of(trial), trial.user_attrs.get(ASKED))
            requeued += 1
    return requeued


def fixed(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with, none if a sampler proposed it."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, including those that it was enqueued with and has not drawn yet."""
    return {**fixed(trial), **trial.params}


def enqueue(study: Study, params: dict[str, float], epochs: float | None = None) -> None:
    """Enqueue a plan before the sampler's next proposals, to be trained for `epochs` (None: as the recipe says)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.enqueue_trial(params, user_attrs={"enqueued": True} | ({} if epochs is None else {ASKED: epochs}))


def _alive(pid: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to another user
        return True
    return True
