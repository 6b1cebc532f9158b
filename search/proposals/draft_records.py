"""The draft in the storage: an Optuna study next to the main one; its values are the proxy loss and the costs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import optuna

from search.study.queue import params_of
from search.study.records import DRAFT

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


def table_ranks_words(correlation: float) -> str:
    """Describe how well the sums of the sensitivity table rank the losses of plans that combine changes."""
    return f"the table's sums rank plans of similar cost with a correlation of {correlation:.2f}"


def choices_in(trial: FrozenTrial, names: Iterable[str]) -> tuple[Any, ...]:
    """Return the values of the draft's parameters in a trial of the main study; the trial may still be waiting."""
    params = params_of(trial)
    return tuple(params.get(name) for name in names)
