"""Which trials wait, and which worker runs them."""

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
    """Name this process, so that another can tell whether it still lives."""
    return f"{socket.gethostname()}:{os.getpid()}"


def accompanied(name: str) -> bool:
    """Whether that worker is another one, which lives as far as this machine can tell."""
    host, _, pid = name.rpartition(":")
    return name != worker() and (host != socket.gethostname() or _alive(int(pid)))


def requeue_abandoned(study: Study) -> int:
    """Give up the trials whose process on this machine is gone, and enqueue their plans again; return how many."""
    lost = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = trial.user_attrs.get(WORKER, ":").rpartition(":")
        if host == socket.gethostname() and not _alive(int(pid)):
            study.tell(trial.number, state=TrialState.FAIL)
            enqueue(study, params_of(trial), trial.user_attrs.get(ASKED))
            lost += 1
    return lost


def fixed(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with, none where a sampler proposed it."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, those too that it was enqueued with and has not drawn yet."""
    return {**fixed(trial), **trial.params}


def enqueue(study: Study, params: dict[str, float], epochs: float | None = None) -> None:
    """Put a plan before what the sampler proposes next, to be trained for so many epochs if any are named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.enqueue_trial(params, user_attrs={"enqueued": True} | ({} if epochs is None else {ASKED: epochs}))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
