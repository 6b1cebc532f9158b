"""Earlier trials of the same plan: their result is repeated, or their training continued."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from optuna import TrialPruned
from optuna.trial import TrialState

from search.study.attributes import numbers_of, put_constraints, put_numbers
from search.study.console import console
from search.study.errors import Diverged
from search.study.files import Damaged
from search.study.history import ByPlan, read
from search.study.records import EARLY_CHECK, EPOCHS, EXCESS, KEY, REASON, REPLAY, STOPPED, UNDONE, VALUES, WEIGHTS
from search.study.weights import fetch, load_state, state_path

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from search.study.spec import StudySpec


def same_plan(study: Study, key: str, number: int, epochs: float) -> FrozenTrial | None:
    """Return an earlier trial of the plan that can be replayed: it was trained as long, or ended before training."""
    for earlier in read(study, ByPlan).of(key):
        has_result = earlier.state != TrialState.FAIL or REASON in earlier.user_attrs
        long_enough = earlier.user_attrs.get(EPOCHS, epochs) >= epochs
        if earlier.number != number and has_result and long_enough and REPLAY not in earlier.user_attrs:
            return earlier
    return None


def shorter_training(study: Study, key: str, folder: Path) -> FrozenTrial | None:
    """Return an earlier, shorter training of the plan whose weights are whole, so that training continues from them."""
    same_plan = [trial for trial in read(study, ByPlan).of(key) if trial.state == TrialState.COMPLETE]
    return next((trial for trial in reversed(same_plan) if _has_whole_weights(trial, folder)), None)


def _has_whole_weights(trial: FrozenTrial, folder: Path) -> bool:
    """Return whether the weights of a trial are there and as they were written; if damaged, a line says so."""
    try:
        fetch(trial, state_path(folder, trial.number))
        load_state(state_path(folder, trial.number), trial.user_attrs.get(WEIGHTS))
    except FileNotFoundError:
        return False
    except Damaged as error:
        console.print(f"{error}; its training begins anew")
        return False
    return True


def costs_of(earlier: FrozenTrial, spec: StudySpec) -> dict[str, float]:
    """Return the costs that an earlier trial of the plan measured; training does not change them."""
    values = numbers_of(earlier, VALUES)
    return {objective.name: values[objective.name] for objective in spec.costs}


def excess_of_costs(earlier: FrozenTrial, spec: StudySpec) -> dict[str, float]:
    """Return by how much an earlier trial of the plan exceeds the limits on costs, as found when it was measured.

    Another process may have measured it, on another machine, where a bound relative to the teacher is another one.
    """
    on_costs = {str(limit) for limit in spec.limits if limit.objective.is_cost}
    return {limit: excess for limit, excess in numbers_of(earlier, EXCESS).items() if limit in on_costs}


def replay(trial: Trial, earlier: FrozenTrial) -> tuple[float, ...]:
    """Replay an earlier trial of the same plan: end as it did, without building or training."""
    for prefix in (VALUES, EXCESS):
        put_numbers(trial, prefix, numbers_of(earlier, prefix))
    for name in (REASON, EPOCHS, EARLY_CHECK, STOPPED, UNDONE):
        if name in earlier.user_attrs:
            trial.set_user_attr(name, earlier.user_attrs[name])
    trial.set_user_attr(REPLAY, earlier.user_attrs.get(REPLAY, earlier.number))
    put_constraints(trial, earlier.constraints.values())
    if earlier.state == TrialState.PRUNED:
        raise TrialPruned
    if earlier.state == TrialState.FAIL:
        raise Diverged(earlier.user_attrs[REASON])
    return tuple(earlier.values)


def leave_to_other(trial: Trial, key: str) -> NoReturn:
    """End a trial whose plan another worker is training at this moment.

    Raises
    ------
    Diverged
        Always.
    """
    running = trial.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    same = [other.number for other in running if other.number != trial.number and other.user_attrs.get(KEY) == key]
    trial.set_user_attr(REPLAY, min(same, default=trial.number))
    raise Diverged("another worker is training the same plan")
