"""The draft in the storage: an Optuna study next to the main one; its values are the proxy loss and the costs."""

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

PLAUSIBLE_SHARE = 0.5  # share of the draft's largest loss above which training is not worth its time (fitted)
NON_FINITE_LOSS = 1e9  # nats; stored as the loss of a network whose outputs are not finite
MIN_LOSS = 0.01  # nats; smaller losses are not distinguished (fitted)


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


def plausible(losses: np.ndarray) -> np.ndarray:
    """Return, for each plan, whether its proxy loss is small enough that training can give a useful network.

    A network with the largest loss of the draft answers as if at random. The plan with the smallest loss is always
    plausible.
    """
    finite = losses[losses < NON_FINITE_LOSS]
    if not len(finite):
        return np.ones(len(losses), dtype=bool)
    good: np.ndarray = losses <= max(PLAUSIBLE_SHARE * finite.max(), finite.min())
    return good
