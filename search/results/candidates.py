"""The table of all finished trials of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from search.study.attributes import numbers_of
from search.study.front import front
from search.study.records import EXCESS, PLAN, REASON, SECONDS, VALUES
from search.study.trial_words import ending

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.outline import Outline


def candidates(study: Study, spec: Outline) -> pd.DataFrame:
    """Return one row for every finished trial.

    The columns are `number`, `state`, `on_front`, `feasible`, one for each measured objective, `cpu_seconds`, `plan`,
    `reason`, and one for each parameter.
    """
    on_front = {trial.number for trial in front(study)}
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        attributes = trial.user_attrs
        values = numbers_of(trial, VALUES)
        rows.append(
            {
                "number": trial.number,
                "state": ending(trial),
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
    """Return whether a trial meets all limits, None if nothing was measured on it."""
    if not numbers_of(trial, VALUES):
        return None
    return all(value <= 0 for value in numbers_of(trial, EXCESS).values())
