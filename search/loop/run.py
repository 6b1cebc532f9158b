"""The loop: run trials until the budget is spent, show the best so far, and stop without losing results."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

import optuna

from search.evaluation.profiling import fit_before_search, refit
from search.loop.schedule import affordable, promote, range_tested
from search.loop.watch import Watch
from search.proposals.draft_start import DraftStart
from search.proposals.gaps import fill_widest_gap
from search.proposals.refusals import turn_after_refusals
from search.study.budget_clock import BudgetClock
from search.study.console import console
from search.study.errors import Diverged
from search.study.front import trained_count
from search.study.queue import enqueue, requeue_abandoned
from search.study.records import AHEAD, RANGES, STARTED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study

    from search.evaluation.context import Context


def run(
    study: Study,
    context: Context,
    folder: Path,
    clock: BudgetClock | None = None,
    reserve: Callable[[], float] | None = None,
) -> bool:
    """Train candidates until the budget is spent; return False if the user stopped the run before.

    Parameters
    ----------
    study, context
        The study; its spec has a start (`search.proposals.defaults.resolved`).
    folder
        Folder for the weights of the candidates.
    clock
        The clock of the budget; by default one that starts now.
    reserve
        Returns the seconds that are needed after the search; called after each trial of a budget with a time.

    Raises
    ------
    UserError
        If the limits cannot be met, or the first trainings all fail.
    """
    spec = context.spec
    clock = clock or BudgetClock(spec.budget)
    abandoned = requeue_abandoned(study)
    if abandoned:
        console.print(f"{abandoned} trial(s) of a process that is gone: will be run again")
    if STARTED not in study.user_attrs:
        study.set_user_attr(RANGES, _ranges(context))
        assert spec.start is not None, "search.proposals.defaults.resolved sets it"
        plans = spec.start(context, study, clock)
        if STARTED not in study.user_attrs:  # another worker may have set it by now
            study.set_user_attr(STARTED, value=True)
            for params in plans:
                enqueue(study, params)
    done = trained_count(study)
    if spec.budget.trials is not None and done >= spec.budget.trials:
        console.print(f"{done} of {spec.budget.trials} trials are done; use a larger --trials to continue")
        return True
    if AHEAD in study.user_attrs:  # the study has measurements from its start
        fit_before_search(context, 0.0)
    rate = range_tested(study, context, clock)
    recipe = affordable(study, context, clock)
    if count := promote(study, recipe.epochs):
        console.print(
            f"{count} members of the front were trained for much less time than is available: training them further"
        )
    with Watch(study, context, folder, recipe, rate, clock, reserve) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        with contextlib.suppress(KeyboardInterrupt):
            while not watch.over():
                refit(study, context)
                turn_after_refusals(study, context)
                if isinstance(spec.start, DraftStart) and spec.start.further:
                    fill_widest_gap(study, context)
                study.optimize(watch.objective, n_trials=1, catch=(Diverged,))
                watch.update()
    return not watch.stopped


def _ranges(context: Context) -> dict[str, list[float]]:
    """Return, for each parameter, the value that changes nothing and the value that compresses most."""
    space, anatomy = context.spec.space, context.subject.anatomy
    weak, strong = (space.uniform(anatomy, (strength,) * len(space.steps)) for strength in (0.0, 1.0))
    return {name: [value, strong[name]] for name, value in weak.items() if name not in space.recovery.usual()}
