"""The draft in the storage: an Optuna study next to the main one; its values are the proxy loss and the costs."""

from __future__ import annotations

import bisect
import warnings
from collections import ChainMap
from functools import cached_property
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from search.study.history import read
from search.study.notes import draft_text, note_study
from search.study.queue import params_of
from search.study.records import DRAFT, INPUTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


def scored_inputs(study: Study) -> int | None:
    """Return on how many inputs the draft of a study scored each plan; None if it has no draft, or it scored none."""
    draft = draft_of(study)
    return None if draft is None else draft.user_attrs.get(INPUTS)


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
    note_study(draft, draft_text(study.study_name))
    return draft


def table_ranks_words(correlation: float) -> str:
    """Describe how well the sums of the sensitivity table rank the losses of plans that combine changes."""
    return f"the table's sums rank plans of similar cost with a correlation of {correlation:.2f}"


def choices_in(trial: FrozenTrial, names: Iterable[str]) -> tuple[Any, ...]:
    """Return the values of the draft's parameters in a trial of the main study; the trial may still be waiting."""
    params = params_of(trial)
    return tuple(params.get(name) for name in names)


class Drafted:
    """The scored plans of a draft by number, read from its study."""

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []

    def add(self, trial: FrozenTrial) -> None:
        """Keep the trial, and forget what is known of all."""
        if trial.state == TrialState.COMPLETE:
            bisect.insort(self.trials, trial, key=lambda one: one.number)
            for known in ("names", "choices", "values"):
                self.__dict__.pop(known, None)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the draft's parameters."""
        return tuple(self.trials[0].params) if self.trials else ()

    @cached_property
    def choices(self) -> list[tuple[Any, ...]]:
        """The values of the parameters of each plan."""
        return [choices_in(trial, self.names) for trial in self.trials]

    @cached_property
    def values(self) -> dict[tuple[Any, ...], list[float]]:
        """The proxy loss and the costs, by the values of the parameters."""
        return {choices: trial.values for choices, trial in zip(self.choices, self.trials, strict=True)}


class _Tried:
    """The finished trials of a study by the values of some parameters: the latest, or the latest that is complete."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.trials: dict[tuple[Any, ...], FrozenTrial] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Keep the trial if no trial with its choices goes before it."""
        choices = choices_in(trial, self._names)
        other = self.trials.get(choices)
        if other is None or _precedence(trial) > _precedence(other):
            self.trials[choices] = trial


def tried(study: Study, names: Iterable[str]) -> Mapping[tuple[Any, ...], FrozenTrial]:
    """Return for all choices that were tried one trial: the latest that is complete, or else the latest of any state.

    Trials that run or wait count too. A plan may be trained twice, and only a training to the end tells whether it
    meets the limits.
    """
    names = tuple(names)
    finished = read(study, _Tried, *names).trials
    found: dict[tuple[Any, ...], FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        choices = choices_in(trial, names)
        other = finished.get(choices)
        if other is None or _precedence(trial) > _precedence(other):
            found[choices] = trial
    return ChainMap(found, finished)


def _precedence(trial: FrozenTrial) -> tuple[bool, int]:
    return trial.state == TrialState.COMPLETE, trial.number
