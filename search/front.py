"""The candidates of a study as a table, and those that nothing else beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from search.errors import REASON, UserError
from search.rungs import STOPPED
from search.trial import EXCESS, PLAN, REPLAY, SECONDS, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.spec import StudySpec


def trained(study: Study) -> list[FrozenTrial]:
    """Return the trials that were trained to the end, without the replays."""
    over = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in over if REPLAY not in trial.user_attrs]


def spent(study: Study) -> int:
    """Return how many trials were trained, to the end or until they were stopped early."""
    stopped = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    early = [trial for trial in stopped if STOPPED in trial.user_attrs and REPLAY not in trial.user_attrs]
    return len(trained(study)) + len(early)


def front(study: Study) -> list[FrozenTrial]:
    """Return the feasible trained trials that no other dominates, the best in the first objective first."""
    best = {trial.number: trial for trial in study.best_trials if REPLAY not in trial.user_attrs}
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    distinct = {tuple(trial.values): trial for trial in sorted(best.values(), key=lambda x: x.number, reverse=True)}
    return sorted(distinct.values(), key=lambda trial: (sign * trial.values[0], trial.number))  # noqa: PD011 - no pandas


def unbeaten(points: Sequence[Sequence[float]], spec: StudySpec) -> list[bool]:
    """Return of each point, one value an objective, whether no other is as good in all and better in one."""
    gains = np.array([1 if objective.direction == "maximize" else -1 for objective in spec.objectives])
    signed = np.array(points, dtype=float).reshape(-1, len(gains)) * gains
    return [not ((signed >= one).all(1) & (signed > one).any(1)).any() for one in signed]


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
                "feasible": _feasible(trial),
                **{objective.name: values.get(objective.name) for objective in spec.measured},
                "cpu_seconds": attributes.get(SECONDS),
                "plan": attributes.get(PLAN, ""),
                "reason": attributes.get(REASON, ""),
                **trial.params,
            }
        )
    return pd.DataFrame(rows)


def _feasible(trial: FrozenTrial) -> bool | None:
    """Whether the limits hold, None where nothing was measured."""
    excess = trial.user_attrs.get(EXCESS)
    return None if excess is None else all(value <= 0 for value in excess.values())


def _state(trial: FrozenTrial) -> str:
    if REPLAY in trial.user_attrs:
        return f"same as {trial.user_attrs[REPLAY]}"
    if STOPPED in trial.user_attrs:
        return "stopped early"
    words = {TrialState.COMPLETE: "trained", TrialState.PRUNED: "refused", TrialState.FAIL: "failed"}
    return words[trial.state]


def need_front(study: Study) -> list[FrozenTrial]:
    """Return the front.

    Raises
    ------
    UserError
        If it is empty, with the trial that comes nearest to the limits.
    """
    found = front(study)
    if found:
        return found
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(EXCESS)]
    if not finished:
        raise UserError("the study has no trained candidate yet; run it for longer: slimfront run")
    near = min(finished, key=lambda trial: max(trial.user_attrs[EXCESS].values()))
    binding, excess = max(near.user_attrs[EXCESS].items(), key=lambda item: item[1])
    raise UserError(
        f"no candidate holds all limits; the nearest, trial {near.number}, misses {binding} by {excess:.1%}; run for "
        "longer or loosen the limit"
    )
