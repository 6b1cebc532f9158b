"""How a trial ended, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from objectives.objective import in_digits
from search.study.attributes import numbers_of
from search.study.records import EPOCHS, PLAN, REASON, REPLAY, SECONDS, STOPPED, UNDONE, VALUES

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def ending(trial: FrozenTrial) -> str:
    """Return how a finished trial ended."""
    if REPLAY in trial.user_attrs:
        return f"same as {trial.user_attrs[REPLAY]}"
    if STOPPED in trial.user_attrs:
        return "stopped early"
    return {TrialState.COMPLETE: "trained", TrialState.PRUNED: "rejected", TrialState.FAIL: "failed"}[trial.state]


def trial_words(trial: FrozenTrial) -> str:
    """Describe a finished trial: how it ended and why, its values, its CPU time and its plan."""
    attributes = trial.user_attrs
    parts = ["measured without training" if attributes.get(EPOCHS) == 0 else ending(trial)]
    if UNDONE in attributes:
        parts[0] += ", which made it worse, so it is as it was before"
    if REASON in attributes:
        parts[0] += f", because: {attributes[REASON]}"
    if values := numbers_of(trial, VALUES):
        parts.append(", ".join(f"{name} {in_digits(value)}" for name, value in values.items()))
    if SECONDS in attributes:
        parts.append(f"{attributes[SECONDS]:.1f} CPU seconds")
    return f"trial {trial.number}: {'; '.join([*parts, attributes.get(PLAN, 'no plan')])}"
