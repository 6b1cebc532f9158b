"""The draft in the storage: an Optuna study next to the main one; its values are the proxy loss and the costs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from search.study.queue import params_of
from search.study.records import DRAFT, MEAN_ANSWER, TEACHER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna import Study
    from optuna.trial import FrozenTrial

MIN_LOSS = 0.004  # smaller proxy losses are not distinguished (fitted)


def draft_of(study: Study) -> Study | None:
    """Return the draft of a study, or None if it has none."""
    storage, name = study._storage, study.study_name + DRAFT  # noqa: SLF001 - Optuna's samplers do so too
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def create_draft(study: Study, names: list[str]) -> Study:
    """Return the draft of a study, created if it does not exist; it minimizes values of these names."""
    draft = optuna.create_study(
        storage=study._storage,  # noqa: SLF001 - Optuna's samplers do so too
        study_name=study.study_name + DRAFT,
        directions=["minimize"] * len(names),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        draft.set_metric_names(names)
    return draft


def choices_in(trial: FrozenTrial, names: Iterable[str]) -> tuple[Any, ...]:
    """Return the values of the draft's parameters in a trial of the main study; the trial may still be waiting."""
    params = params_of(trial)
    return tuple(params.get(name) for name in names)


def metric_names(study: Study) -> list[str]:
    """Return the names of a study's objectives, or an empty list if they have no names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return list(study.metric_names or ())


def middle_value(study: Study, objective: str, sign: float) -> float:
    """Return the middle between the teacher's value and that of a network that answers all inputs alike.

    `sign` is 1 for a minimized objective and -1 for a maximized one; if the middle is not known, the worst value.
    """
    teacher, mean_answer = (study.user_attrs.get(key, {}).get(objective) for key in (TEACHER, MEAN_ANSWER))
    if teacher is None or mean_answer is None or sign * mean_answer <= sign * teacher:
        return float(sign * np.inf)
    return float(teacher + mean_answer) / 2
