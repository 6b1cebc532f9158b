"""The loop: run trials until the budget is spent, show the best so far, and stop without losing results."""

from __future__ import annotations

import contextlib
import uuid
import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from search.evaluation.profiling import fit_before_search, refit
from search.evaluation.tried_precisions import try_precisions
from search.loop.rates import range_tested
from search.loop.schedule import affordable, measure_first, promote
from search.loop.watch import Watch
from search.proposals.draft_records import scored_inputs
from search.proposals.draft_start import DraftStart
from search.proposals.gaps import fill_widest_gap, widest_gap
from search.proposals.refusals import are_due, turn_after_refusals
from search.study.budget_clock import BudgetClock
from search.study.cleaning import Cleaning
from search.study.console import console
from search.study.errors import UserError, reason_of
from search.study.front import trained_count
from search.study.queue import QUEUE, ask, enqueue, rerun_abandoned
from search.study.records import AHEAD, DESIGNS, RANGES, SPENT, STARTED
from search.study.weights import store_of
from search.study.workers import Alone, Workers
from spaces.network.messages import listed, number_of, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Study

    from search.evaluation.context import Context

LATE_START = 0.5  # share of the time that is gone before a search, from which a message says so (chosen)


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
    trials = context.spec.budget.trials
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if trials is not None and not running and (done := trained_count(study)) >= trials:
        console.print(f"{done} of {trials} trials are done; use a larger --trials to continue")
        return True
    clock = clock or BudgetClock(context.spec.budget)
    with Workers(study, folder) as workers:
        context.workers, context.store = workers, store_of(study)
        try:
            return _run(study, context, folder, clock, reserve)
        finally:
            rerun_abandoned(study, workers)
            context.workers = Alone()
            study.set_user_attr(f"{SPENT}{uuid.uuid4().hex[:8]}", context.cpu_profile.seconds)


def _run(study: Study, context: Context, folder: Path, clock: BudgetClock, reserve: Callable[[], float] | None) -> bool:
    """Do what `run` does, as a worker of the study."""
    trials, workers = context.spec.budget.trials, context.workers
    assert isinstance(workers, Workers)
    _rerun_abandoned(study, workers)
    if clock.spent > LATE_START:
        passed = " and ".join(clock.words())
        console.print(f"{passed} have passed before the search, so little can be searched; give it more time")
    try_precisions(study, context, clock)
    _start(study, context, clock)
    context.scored_inputs = scored_inputs(study) or context.scored_inputs
    if AHEAD in study.user_attrs:  # the study has measurements from its start
        fit_before_search(context, 0.0)
    rate = range_tested(study, context, clock) if context.spec.recipe.epochs else None
    recipe = affordable(study, context, clock)
    if recipe.epochs < context.spec.recipe.epochs:
        measure_first(study, context)
    with workers.turn(QUEUE):
        count = promote(study, recipe.epochs)
    if count:
        console.print(
            f"{number_of(count, 'member')} of the front: trained for much less time than there is, so trained further"
        )
    cleaning = Cleaning(study, folder)
    cleaning.clean()  # what a worker that was killed between its trial and its cleaning left
    with Watch(study, context, folder, recipe, rate, clock, reserve) as watch, contextlib.suppress(KeyboardInterrupt):
        while not watch.over():
            _rerun_abandoned(study, workers)
            with workers.ticket("one of the budget's trials") as ticket:
                # tickets are counted before results: a trial that ends in between counts twice, and never not at all
                if trials is None or ticket.ahead() + trained_count(study) < trials:
                    refit(study, context)
                    _propose(study, context)
                    watch.run_one(ask(study, workers))
                    watch.update()
                    cleaning.clean()
                else:
                    watch.wait(ticket)
        watch.report_end()
    cleaning.report()
    return not watch.stopped


def _start(study: Study, context: Context, clock: BudgetClock) -> None:
    """Enqueue the initial designs, once per study; a mark is set after its act, since a worker may die at any time."""
    if STARTED in study.user_attrs:
        _ensure_same_choices(study, context)
        return
    workers = context.workers
    study.set_user_attr(RANGES, _ranges(context))
    if DESIGNS not in study.user_attrs:
        plans = _designs(study, context, clock)
        with workers.turn(QUEUE):
            if DESIGNS not in study.user_attrs:
                study.set_user_attr(DESIGNS, plans)
    with workers.turn(QUEUE):
        if STARTED not in study.user_attrs:
            for params in study.user_attrs[DESIGNS][len(study.get_trials(deepcopy=False)) :]:
                enqueue(study, params)
            study.set_user_attr(STARTED, value=True)


def _designs(study: Study, context: Context, clock: BudgetClock) -> list[dict[str, float]]:
    """Return the parameters of the initial designs.

    Raises
    ------
    UserError
        If a start that is not ours fails, or returns something else.
    """
    start = context.spec.start
    assert start is not None, "search.proposals.defaults.resolved sets it"
    name = f"the start of the study, {getattr(start, '__name__', type(start).__name__)},"
    try:
        plans = start(context, study, clock)
    except Exception as error:
        if isinstance(error, UserError) or start.__module__.startswith(f"{__name__.partition('.')[0]}."):
            raise
        raise UserError(f"{name} failed: {reason_of(error)}") from error
    if not isinstance(plans, list) or not all(isinstance(plan, dict) for plan in plans):
        raise UserError(f"{name} must return a list of dicts of parameters, but returned {type(plans).__name__}")
    space, anatomy = context.spec.space, context.subject.anatomy
    known = space.uniform(anatomy, (0.0,) * len(space.steps))
    if unknown := {each for plan in plans for each in plan} - known.keys():
        raise UserError(f"{name} returned a wrong parameter: {unknown_name('parameter', min(unknown), known)}")
    return plans


def _rerun_abandoned(study: Study, workers: Workers) -> None:
    """Give back the trials of workers that are gone, and say so."""
    if abandoned := rerun_abandoned(study, workers):
        console.print(f"{abandoned} trial(s) of a worker that is gone: will be run again")


def _propose(study: Study, context: Context) -> None:
    """Enqueue a plan if one is better than what the sampler would propose; one worker at a time does.

    Workers that have nothing to enqueue do not wait for their turn: there may be hundreds.
    """
    start = context.spec.start
    further = isinstance(start, DraftStart) and bool(start.further)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if waiting or not (are_due(study, context) or (further and widest_gap(study, context) is not None)):
        return
    with context.workers.turn(QUEUE), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        turn_after_refusals(study, context)
        if further:
            fill_widest_gap(study, context)


def _ensure_same_choices(study: Study, context: Context) -> None:
    """Check that the parameters of the study's trials mean what they did, since they are places in lists of choices.

    Raises
    ------
    UserError
        If a parameter has other choices now, as after an update that lets a runtime execute more precisions.
    """
    now = _ranges(context)
    stored = study.user_attrs.get(RANGES, now)
    if changed := [name for name, ends in now.items() if stored.get(name, ends) != ends]:
        raise UserError(
            "the study began with another version of slimfront or of its runtime, which offered other choices for "
            f"{listed(changed)}; continue it with that version, or begin another study with --folder"
        )


def _ranges(context: Context) -> dict[str, list[float]]:
    """Return, for each parameter, the value that changes nothing and the value that compresses most."""
    space, anatomy = context.spec.space, context.subject.anatomy
    weak, strong = (space.uniform(anatomy, (strength,) * len(space.steps)) for strength in (0.0, 1.0))
    return {name: [value, strong[name]] for name, value in weak.items() if name not in space.recovery.usual()}
