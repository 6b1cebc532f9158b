"""Kinds of plans that fail again and again: what only they have in common is not proposed again, or the run ends.

A plan that fails costs its building or its training and gives nothing. Where a runtime, an axis or the network cannot
do one thing, such as one width of one layer, all plans with it fail, and a search may propose hundreds of them.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from optuna import TrialPruned
from optuna.trial import TrialState

from search.study.attributes import put_constraints
from search.study.console import console
from search.study.errors import UserError
from search.study.history import Finished, read
from search.study.records import REASON, REPLAY, STOPPED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from optuna import Study, Trial

    from search.evaluation.context import Context
    from spaces import Anatomy, Plan

ENOUGH_FAILURES = 5  # failures for one reason, of plans whose common values are then to blame (chosen)
LEAST_IN_A_ROW, MOST_IN_A_ROW = (
    10,
    30,
)  # failures in a row that end a search; in between as many as plans worked (chosen)
CHOICES_SHOWN = 3  # values of a kind that a message names


class FailingKinds:
    """The plans of one activity, as far as it has come: those that worked, and those that failed.

    A kind is what all plans that failed for one reason have in common, as far as no plan that worked has it. It is as
    narrow as what was seen: it becomes wider with every failure, and is none if there is no such value.

    Parameters
    ----------
    activity
        What the plans are for, such as `the draft`.
    """

    def __init__(self, activity: str) -> None:
        self.activity = activity
        self.in_a_row = 0
        self.worked_count = 0
        self._worked: set[tuple[str, Any]] = set()  # choices with their values
        self._shared: dict[str, set[tuple[str, Any]]] = {}
        self._reasons: Counter[str] = Counter()
        self._said: set[str] = set()
        self._read: set[int] = set()  # numbers of trials

    def worked(self, choices: Mapping[str, Any]) -> None:
        """Note a plan that worked, by its choices (see `choices_of`)."""
        self._worked |= set(choices.items())
        self.worked_count += 1
        self.in_a_row = 0

    def failed(self, choices: Mapping[str, Any], reason: str) -> None:
        """Note a plan that failed; say once if what fails has something in common."""
        reason = _without_numbers(reason)
        self._reasons[reason] += 1
        self._shared[reason] = self._shared.get(reason, set(choices.items())) & set(choices.items())
        kind = self._kind(reason)
        self.in_a_row = 0 if kind else self.in_a_row + 1  # a kind is not proposed again
        if kind and reason not in self._said:
            self._said.add(reason)
            console.print(
                f"{self.activity}: {self._reasons[reason]} plans failed with {reason}; only they have {_words(kind)}, "
                "so no other plan with that is tried",
                markup=False,
            )

    def reason_against(self, choices: Mapping[str, Any]) -> str:
        """Return why a plan with these choices is not tried; empty if it is."""
        values = set(choices.items())
        for reason in self._shared:
            kind = self._kind(reason)
            if kind and kind <= values:
                return f"not tried: all plans with {_words(kind)} failed with {reason}"
        return ""

    @property
    def hopeless(self) -> str:
        """Why the search is to end: so many plans failed in a row; empty if it is not."""
        if self.in_a_row < max(LEAST_IN_A_ROW, min(MOST_IN_A_ROW, self.worked_count)):
            return ""
        (reason, _), *_ = self._reasons.most_common(1)
        return (
            f"{self.activity}: the last {self.in_a_row} plans all failed, most often with {reason}, and have nothing "
            f"in common that the {self.worked_count} that worked do not have"
        )

    def read(self, study: Study, context: Context, *, before: bool = False) -> None:
        """Note the trials that ended since the last call.

        Parameters
        ----------
        study, context
            The study.
        before
            Whether they ended before this activity, so that they do not count: their cause may be repaired.

        Raises
        ------
        UserError
            If the search is to end.
        """
        for trial in read(study, Finished).trials:
            if trial.number in self._read:
                continue
            self._read.add(trial.number)
            if before or REPLAY in trial.user_attrs:
                continue
            if trial.state == TrialState.FAIL and REASON in trial.user_attrs:
                self.failed(_choices_of_trial(trial.params, context), trial.user_attrs[REASON])
            elif trial.state == TrialState.COMPLETE or STOPPED in trial.user_attrs:
                self.worked(_choices_of_trial(trial.params, context))
        if self.hopeless:
            raise UserError(f"{self.hopeless}; all finished work is kept, and `slimfront front` shows it")

    def refuse(self, trial: Trial, context: Context) -> None:
        """End a trial whose plan is of a kind that fails, before it is built.

        Raises
        ------
        TrialPruned
            If it is.
        """
        if not self._said:
            return
        spec, anatomy = context.spec, context.subject.anatomy
        if reason := self.reason_against(choices_of(spec.space.suggest(trial, anatomy), anatomy)):
            trial.set_user_attr(REASON, reason)
            put_constraints(trial, (0.0 for _ in spec.limits))  # samplers ask for them
            raise TrialPruned

    def _kind(self, reason: str) -> set[tuple[str, Any]]:
        """Return what only the plans that failed for this reason have in common; empty as long as they are few."""
        enough = self.worked_count and self._reasons[reason] >= ENOUGH_FAILURES
        return self._shared[reason] - self._worked if enough else set()


def choices_of(plan: Plan, anatomy: Anatomy) -> dict[str, Any]:
    """Return what a plan chooses for each layer: several values of a parameter may mean the same."""
    titled = plan.choices(anatomy).items()
    return {f"{title} of {name}": choice.word for title, chosen in titled for name, choice in chosen.items()}


def _choices_of_trial(params: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Return the choices of the plan of a trial, or its parameters where it ended while they were drawn."""
    try:
        return choices_of(context.plan(params), context.subject.anatomy)
    except Exception:  # noqa: BLE001 - an axis may fail in any way
        return dict(params)


def _without_numbers(reason: str) -> str:
    """Return a reason without what differs between plans: `expected 12, got 48` is one reason."""
    return re.sub(r"\d+(\.\d+)?([eE][+-]?\d+)?", "#", reason)


def _words(kind: set[tuple[str, Any]]) -> str:
    """Name the choices of a kind with their values."""
    named = [f"{name} = {value}" for name, value in sorted(kind)]
    more = len(named) - CHOICES_SHOWN
    return ", ".join(named[:CHOICES_SHOWN]) + (f" and {more} more such values together" if more > 0 else "")
