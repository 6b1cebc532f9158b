"""For how long the candidates of a study are trained, and which of them further."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import TrialState

from search.loop.rates import initial_designs
from search.study.console import console
from search.study.durations import duration
from search.study.errors import reason_of
from search.study.front import front, trained, trained_count
from search.study.queue import enqueue, fixed, params_of
from search.study.records import ASKED, EPOCHS, SECONDS
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from search.study.spec import Recipe, StudySpec

MIN_CANDIDATES = 8  # candidates that must fit in the time left; otherwise trainings are shortened (fitted)
TIMING_SHARE = 0.02  # of the budget's time: about the most that timing a candidate's steps takes (chosen)
MIN_TRAINING_STEPS = 25  # steps below which no training is shortened, unless none would end in time (chosen)
FILE_SHARE = 1.0  # time for a file and its verification, of that for building and measuring a candidate (chosen)
FRONT_SHARE = 0.25  # last share of the time, kept for training the front further if trainings were shortened (fitted)
WITH_TEACHER = 4 / 3  # time of a step whose teacher outputs cannot be cached: a forward pass more than the usual three
RECENT_TRIALS = 8  # last trained trials, whose median time tells how long the next one takes (chosen)
MIN_LENGTHENING = 1.5  # a second training has at least this many times the epochs of the first (chosen)


def affordable(study: Study, context: Context, clock: BudgetClock) -> Recipe:
    """Return the study's recipe, shortened if too few candidates could be trained in the time left."""
    if not clock.timed or not context.spec.recipe.epochs:
        return context.spec.recipe
    task = f"length of the trainings of {clock.run or context.workers.name}"
    return context.spec.recipe.of_length(context.workers.share([task], lambda _: _epochs(study, context, clock))[task])


def _epochs(study: Study, context: Context, clock: BudgetClock) -> float:
    """Return the epochs of each training that let enough candidates be trained in the time left."""
    recipe = context.spec.recipe
    steps = recipe.steps(context.spec.splits.train)
    designs = initial_designs(study, context)
    plan = designs[len(designs) // 2]
    try:
        step_seconds, building, judging = context.seconds_a_candidate(recipe, plan, clock.allowed(TIMING_SHARE))
    except Exception as error:  # noqa: BLE001 - a trial will report any error, and the next plan may work
        console.print(f"the time per candidate is unknown, because timing one failed: {reason_of(error)}")
        return recipe.epochs
    trials, other_seconds = clock.budget.trials, building + judging
    together = MIN_CANDIDATES if trials is None else max(1, min(MIN_CANDIDATES, trials - trained_count(study)))
    count = math.ceil(together / clock.workers)
    if clock.left >= count * (step_seconds * steps + other_seconds):
        return recipe.epochs
    wanted = ((clock.left - FRONT_SHARE * clock.total) / count - other_seconds) / step_seconds
    alone = (clock.left - other_seconds - FILE_SHARE * building) / step_seconds  # steps of a single candidate
    short = recipe.longer(min(1.0, max(wanted, min(alone, MIN_TRAINING_STEPS), 1.0) / steps))
    short_steps, part = short.steps(context.spec.splits.train), short.epochs / recipe.epochs
    console.print(
        f"each candidate is trained for {number_of(short_steps, 'step')}, {part:.0%} of the {recipe.epochs:g} epochs "
        "of the recipe, to finish in time"
    )
    seconds = step_seconds * short_steps + other_seconds
    if wanted < MIN_TRAINING_STEPS:
        fitting = number_of(max(1, int(clock.workers * clock.left / seconds)), "candidate")
        console.print(
            f"the time is short: about {fitting} can be trained, since one takes {seconds:.0f} s; "
            f"{together} of them take some {duration(count * seconds / (1 - FRONT_SHARE))}"
        )
    return short.epochs


def measure_first(study: Study, context: Context) -> None:
    """Let the plan of a runtime's own converter be measured as it is, without a training, as long as it waits.

    In a short time a training of it would take the place of another candidate, and it hardly needs one.
    """
    converted = context.spec.space.converted(context.subject.anatomy)
    steps = context.plan(converted).steps
    if not any(step.words() for step in steps):
        return  # no axis of the space is one of converters
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        params = fixed(trial)
        waits = params.keys() >= converted.keys() and ASKED not in trial.user_attrs
        if waits and context.plan(params).steps == steps:
            study._storage.set_trial_user_attr(trial._trial_id, ASKED, 0.0)  # noqa: SLF001 - Optuna has no other way
            console.print(
                "the time is short, so the plan with 8 bits everywhere is measured without a training at first"
            )


def prolong(study: Study, spec: StudySpec, seconds: float) -> int:
    """Enqueue members of the front for further training, all or those with most to gain; return their number.

    A network whose values are far from the best of all trials gains most from more training; one with the best values
    gains nothing. So if there is too little time to train all members for much longer, the best ones are left out.

    Parameters
    ----------
    study, spec
        The study. No member is trained for longer than the recipe's epochs.
    seconds
        CPU time for all members together; the time per epoch is estimated from the trained trials.
    """
    finished = trained(study)
    epoch_seconds = _epoch_seconds(finished)
    members = sorted(front(study), key=lambda member: _gap(member, finished, spec), reverse=True)
    for count in range(len(members) if epoch_seconds else 0, 0, -1):
        epochs = min(spec.recipe.epochs, seconds / (count * epoch_seconds))
        chosen = _shorter(study, members, epochs)[:count]
        if len(chosen) == count:
            return _enqueue_all(study, chosen, epochs)
    return 0


def approach(study: Study, spec: StudySpec, seconds: float) -> int:
    """Enqueue the candidates nearest to the limits for a training by the recipe of a confirmation, if none meets them.

    If no candidate meets a limit such as "lose at most 1 point" after the recipe of the search, a longer training of
    the nearest ones brings more than further candidates. It continues from their weights.

    Parameters
    ----------
    study, spec
        The study.
    seconds
        CPU time for all of them together; the time per epoch is estimated from the trained trials.

    Returns
    -------
    int
        The number of enqueued candidates: as many as the time allows for the whole recipe, or one for a part of it; 0
        if a candidate meets all limits or there is no time.
    """
    finished = trained(study)
    if not finished or seconds <= 0 or front(study):
        return 0
    recipe, epoch_seconds = spec.confirmation_recipe, _epoch_seconds(finished)
    if not epoch_seconds or not recipe.epochs:
        return 0
    if recipe.augment is not None and spec.recipe.augment is None:
        epoch_seconds *= WITH_TEACHER
    epochs = min(recipe.epochs, seconds / epoch_seconds)
    nearest: dict[tuple[tuple[str, Any], ...], FrozenTrial] = {}  # one trial of each plan
    for trial in sorted(finished, key=lambda trial: max(trial.constraints.values(), default=0.0)):
        nearest.setdefault(tuple(trial.params.items()), trial)
    count = max(1, int(seconds / (epochs * epoch_seconds)))
    return _enqueue_all(study, _shorter(study, list(nearest.values()), epochs)[:count], epochs)


def expected_seconds(study: Study) -> float:
    """Return the CPU seconds that the next trial will take: as the latest ones, or by the epochs that it asks for."""
    finished = trained(study)
    if not finished:
        return 0.0
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if waiting and ASKED in waiting[0].user_attrs:
        return float(waiting[0].user_attrs[ASKED] * _epoch_seconds(finished))
    return float(statistics.median(trial.user_attrs[SECONDS] for trial in finished[-RECENT_TRIALS:]))


def promote(study: Study, epochs: float) -> int:
    """Enqueue the members of the front that were trained for much fewer epochs; return their number."""
    return _enqueue_all(study, _shorter(study, front(study), epochs), epochs)


def _shorter(study: Study, members: Sequence[FrozenTrial], epochs: float) -> list[FrozenTrial]:
    """Return the members whose longest training, finished or planned, is much shorter than `epochs`."""
    if not epochs:
        return []
    longest: dict[frozenset[tuple[str, Any]], float] = {frozenset(member.params.items()): 0.0 for member in members}
    for trial in study.get_trials(deepcopy=False) if members else ():
        params = frozenset(params_of(trial).items())
        if params in longest:
            longest[params] = max(longest[params], _length(trial))
    return [member for member in members if MIN_LENGTHENING * longest[frozenset(member.params.items())] <= epochs]


def _epoch_seconds(finished: Sequence[FrozenTrial]) -> float:
    """Return the CPU seconds of an epoch, the mean over the trials; 0 if none was trained."""
    each = [trial.user_attrs[SECONDS] / trial.user_attrs[EPOCHS] for trial in finished if trial.user_attrs[EPOCHS]]
    return statistics.fmean(each) if each else 0.0


def _enqueue_all(study: Study, members: Sequence[FrozenTrial], epochs: float) -> int:
    for member in members:
        enqueue(study, member.params, epochs)
    return len(members)


def _gap(member: FrozenTrial, finished: Sequence[FrozenTrial], spec: StudySpec) -> float:
    """Return a trial's distance from the best values, in shares of the range, summed over the trained objectives."""
    columns = [at for at, objective in enumerate(spec.objectives) if not objective.is_cost]
    values = np.array([trial.values for trial in finished])[:, columns]
    signs = [1 if spec.objectives[at].direction == "maximize" else -1 for at in columns]
    best = (values * signs).max(0)
    own = np.array(member.values)[columns] * signs
    return float(((best - own) / np.maximum(np.ptp(values, axis=0), 1e-12)).sum())


def _length(trial: FrozenTrial) -> float:
    """Return the epochs for which a trial was, is, or will be trained; 0 if it failed."""
    failed = trial.state == TrialState.FAIL
    return 0.0 if failed else float(trial.user_attrs.get(EPOCHS, trial.user_attrs.get(ASKED, 0.0)))
