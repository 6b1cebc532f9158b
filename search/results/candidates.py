"""The candidates of a study as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from optuna.trial import TrialState

from search.study.front import front
from search.study.records import EXCESS, PLAN, REASON, REPLAY, SECONDS, STOPPED, VALUES

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.spec import StudySpec


def candidates(study: Study, spec: StudySpec) -> pd.DataFrame:
    """Return every finished trial, one row each.

    Columns: `number`, `state`, `on_front`, `feasible`, one an objective or limit, `cpu_seconds`, `plan`, `reason`, and
    one a parameter.
    """
    on_front = {trial.number for trial in front(study)}
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        attributes = trial.user_attrs
        values = attributes.get(VALUES, {})
        rows.append(
            {
                "number": trial.number,
                "state": _state(trial),
                "on_front": trial.number in on_front,
                "feasible": feasible(trial),
                **{objective.name: values.get(objective.name) for objective in spec.measured},
                "cpu_seconds": attributes.get(SECONDS),
                "plan": attributes.get(PLAN, ""),
                "reason": attributes.get(REASON, ""),
                **trial.params,
            }
        )
    return pd.DataFrame(rows)


def feasible(trial: FrozenTrial) -> bool | None:
    """Whether the limits hold, None where nothing was measured."""
    excess = trial.user_attrs.get(EXCESS)
    return None if excess is None else all(value <= 0 for value in excess.values())


def _state(trial: FrozenTrial) -> str:
    if REPLAY in trial.user_attrs:
        return f"same as {trial.user_attrs[REPLAY]}"
    if STOPPED in trial.user_attrs:
        return "stopped early"
    words = {TrialState.COMPLETE: "trained", TrialState.PRUNED: "rejected", TrialState.FAIL: "failed"}
    return words[trial.state]
