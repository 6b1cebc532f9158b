"""The draft in the storage: an Optuna study beside the main one, whose values are the proxy loss and the costs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from search.study.queue import params_of
from search.study.records import DRAFT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna import Study
    from optuna.trial import FrozenTrial

PLAUSIBLE = 0.5  # of the largest loss in the draft, at which a network answers as if it had seen nothing (fitted)
NOT_FINITE = 1e9  # stands for the loss of a network whose answers are not finite
LEAST_LOSS = 0.01  # nats; below it one loss is like another (fitted)


def draft_of(study: Study) -> Study | None:
    """Return the draft of a study, or None where there is none."""
    storage, name = study._storage, study.study_name + DRAFT  # noqa: SLF001 - Optuna's samplers do so too
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def create_draft(study: Study, names: list[str]) -> Study:
    """Return the draft of a study, made where there is none, with these names of its values, all to be small."""
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
    """Return the values of the draft's parameters in a trial of the study, be it one that still waits."""
    params = params_of(trial)
    return tuple(params.get(name) for name in names)


def metric_names(study: Study) -> list[str]:
    """Return the names of a study's objectives, none where it has no names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return list(study.metric_names or ())


def plausible(losses: np.ndarray) -> np.ndarray:
    """Return which plans can be trained to something worth having, as far as their proxy losses say."""
    finite = losses[losses < NOT_FINITE]
    if not len(finite):
        return np.ones(len(losses), dtype=bool)
    good: np.ndarray = losses <= max(PLAUSIBLE * finite.max(), finite.min())
    return good
