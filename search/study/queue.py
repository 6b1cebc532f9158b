"""The queue of enqueued plans, and how a worker takes a trial from it or gives one back."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState, create_trial

from search.study.history import place
from search.study.records import ASKED, CHECKPOINT, EARLY_CHECK, PLACE, RERUN, WORKER

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.workers import Alone, Workers

# Tasks that one worker does at a time: adding to the queue, and giving back the trial of another worker
QUEUE = "the queue"
KEPT = ASKED, EARLY_CHECK, CHECKPOINT  # attributes of an unfinished trial that the one which runs it again needs
RERUNNING = "run trial {} again"


def ask(study: Study, workers: Workers) -> Trial:
    """Return the next trial: the first one that was left unfinished, else the first enqueued one, else a new one.

    In contrast to `Study.ask` the trial has the name of its worker from its first moment, so that others know whose it
    is if the worker dies.
    """
    study._thread_local.cached_all_trials = None  # noqa: SLF001 - as Study.ask does
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    for trial in sorted(waiting, key=lambda trial: (RERUN not in trial.user_attrs, trial.number)):
        with workers.ticket(f"take trial {trial.number}") as ticket:
            if not ticket.ahead() and _taken(study, trial, workers.name):
                return Trial(study, trial._trial_id)  # noqa: SLF001
    new = create_trial(state=TrialState.RUNNING, user_attrs={WORKER: workers.name})
    return Trial(study, study._storage.create_new_trial(study._study_id, new))  # noqa: SLF001


def _taken(study: Study, trial: FrozenTrial, name: str) -> bool:
    """Take a waiting trial, as the only worker that does so now; return False if another has taken it before."""
    storage, trial_id = study._storage, trial._trial_id  # noqa: SLF001
    if storage.get_trial(trial_id).state != TrialState.WAITING:
        return False
    storage.set_trial_user_attr(trial_id, WORKER, name)
    return storage.set_trial_state_values(trial_id, TrialState.RUNNING)


def give_back(study: Study, number: int, workers: Workers | Alone) -> bool:
    """Enqueue the plan of an unfinished trial and fail the trial; return False if that was done before."""
    with workers.turn(RERUNNING.format(number)):
        trials = study.get_trials(deepcopy=False)
        trial = trials[number]
        if trial.state != TrialState.RUNNING:
            return False
        if all(other.user_attrs.get(RERUN) != number for other in trials[number + 1 :]):
            kept = {name: trial.user_attrs[name] for name in KEPT if name in trial.user_attrs}
            attributes = {RERUN: number, PLACE: place(trial)} | kept
            _enqueue(study, params_of(trial), attributes)
        with contextlib.suppress(UpdateFinishedTrialError):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # noqa: SLF001
        return True


def rerun_abandoned(study: Study, workers: Workers) -> int:
    """Give back the trials whose workers are gone; return their number."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    living = workers.living() if running else set()  # once: each look asks for all workers
    return sum(
        give_back(study, trial.number, workers) for trial in running if trial.user_attrs.get(WORKER, "") not in living
    )


def fixed(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with, none if a sampler proposed it."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, including those that it was enqueued with and has not drawn yet."""
    return {**fixed(trial), **trial.params}


def enqueue(study: Study, params: dict[str, float], epochs: float | None = None) -> None:
    """Enqueue a plan before the sampler's next proposals, to be trained for `epochs` (None: as the recipe says)."""
    _enqueue(study, params, {} if epochs is None else {ASKED: epochs})


def _enqueue(study: Study, params: dict[str, Any], attributes: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.enqueue_trial(params, user_attrs={"enqueued": True} | attributes)
