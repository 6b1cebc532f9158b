"""How long, and at which learning rate, the candidates of a study are trained."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import TrialState

from search.study.console import console
from search.study.cpu_profile import BUILDING, TRAINING
from search.study.front import front, spent, trained
from search.study.queue import enqueue, fixed, params_of
from search.study.records import ASKED, EPOCHS, RANGE, SECONDS
from search.training.learning_rate import MOST_DAMAGE, TEST_STEPS, Rate, range_test
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from search.study.spec import Recipe, StudySpec
    from spaces import Plan

LEAST_CANDIDATES = 8  # that must be trained in the time that is left; where it is not enough, trainings are shortened
LEAST_STEPS = 25  # of a training
LAST_SHARE = 0.25  # of the time, at its end: for training on members of the front where trainings were shortened
LONGER_BY = 1.5  # times the epochs that a member had: a shorter second training is not worth its time


def range_tested(study: Study, context: Context) -> Rate | None:
    """Return the learning rate of a range test, which is made once a study; None where the recipe names its own.

    The test is made on the smallest network of the plans that the study starts with: what has lost little is served by
    almost any rate, and a test on it tells little. But what has lost nearly all may be past training, where rates seem
    best that ruin others; so it is the smallest of which enough is left, or the one that has lost least.
    """
    recipe = context.spec.recipe
    if recipe.learning_rate is not None:
        return None
    if RANGE not in study.user_attrs:
        plan = _damaged([context.plan(params) for params in _first(study, context)], context)
        model = context.build(plan)
        with context.cpu_profile.charge(TRAINING):
            train = context.spec.splits.train
            rate = range_test(model, context.teacher, train, plan.recovery, recipe, context.spec.seed)
            study.set_user_attr(RANGE, Rate(rate, context.proxy_loss(model), TEST_STEPS))
        console.print(f"learning rate {rate:.2g} by a range test; others by what a network lost, and its steps")
    return Rate(*study.user_attrs[RANGE])


def _damaged(plans: list[Plan], context: Context) -> Plan:
    """Return the last of ever smaller plans that is surely not past training, or what has lost least."""

    def lost(plan: Plan) -> float:
        try:
            loss = context.proxy_loss(context.subject.build_roughly(plan))
        except Exception:  # noqa: BLE001 - whatever it is, its trial will say so
            return math.inf
        return loss if math.isfinite(loss) else math.inf

    losses: dict[Plan, float] = {}
    with context.cpu_profile.charge(BUILDING):
        for plan in reversed(plans):
            losses[plan] = lost(plan)
            if losses[plan] <= MOST_DAMAGE:
                return plan
    return min(plans, key=losses.__getitem__)


def _first(study: Study, context: Context) -> list[dict[str, Any]]:
    """Return the parameters of the plans that the study started with; if there are none, of one of half strength."""
    space = context.spec.space
    half = space.uniform(context.subject.anatomy, (0.5,) * len(space.steps))
    begun = [fixed(trial) for trial in study.get_trials(deepcopy=False) if ASKED not in trial.user_attrs]
    # a plan whose trial was cut short while it was drawn lacks parameters
    return [params for params in begun if half.keys() <= params.keys()] or [half]


def affordable(study: Study, context: Context, clock: BudgetClock) -> Recipe:
    """Return the study's recipe, shortened where the time that is left would not train candidates enough."""
    recipe = context.spec.recipe
    if not clock.timed:
        return recipe
    steps = recipe.steps(len(context.spec.splits.train))
    first = _first(study, context)
    plan = context.plan(first[len(first) // 2])
    try:
        a_step, besides = context.seconds_a_candidate(recipe, plan)
    except Exception as error:  # noqa: BLE001 - whatever it is, a trial will say so, and the next may be well
        console.print(f"how long a candidate takes is not known: {first_line(error)}")
        return recipe
    trials = clock.budget.trials
    enough = LEAST_CANDIDATES if trials is None else max(1, min(LEAST_CANDIDATES, trials - spent(study)))
    if clock.left >= enough * (a_step * steps + besides):
        return recipe
    affords = ((clock.left - LAST_SHARE * clock.total) / enough - besides) / a_step
    short = recipe.longer(min(1.0, max(affords, LEAST_STEPS) / steps))
    count, part = short.steps(len(context.spec.splits.train)), short.epochs / recipe.epochs
    console.print(f"candidates are trained for {count} steps, {part:.0%} of the recipe, to be in time")
    return short


def prolong(study: Study, spec: StudySpec, seconds: float) -> int:
    """Enqueue members of the front to be trained on, all or those that have most to gain; return how many.

    A network that is far behind the best of the front gains most from more training, and one that is as good as it
    gains nothing. So where the time would not train all for clearly longer than they were, the best are left out.

    Parameters
    ----------
    study, spec
        Of which every trained trial says how long it took. None is trained for longer than the recipe says.
    seconds
        CPU time for all of them.
    """
    over = trained(study)
    a_epoch = statistics.fmean(trial.user_attrs[SECONDS] / trial.user_attrs[EPOCHS] for trial in over) if over else 0.0
    members = sorted(front(study), key=lambda member: _behind(member, over, spec), reverse=True)
    for count in range(len(members), 0, -1):
        epochs = min(spec.recipe.epochs, seconds / (count * a_epoch))
        chosen = _short(study, members, epochs)[:count]
        if len(chosen) == count:
            return _enqueued(study, chosen, epochs)
    return 0


def promote(study: Study, epochs: float) -> int:
    """Enqueue the members of the front that were trained for clearly less; return how many."""
    return _enqueued(study, _short(study, front(study), epochs), epochs)


def _short(study: Study, members: Sequence[FrozenTrial], epochs: float) -> list[FrozenTrial]:
    """Return the members whose longest training, over or to come, is clearly shorter than so many epochs."""
    over = study.get_trials(deepcopy=False)
    longest = [max(_length(trial) for trial in over if params_of(trial) == member.params) for member in members]
    return [member for member, length in zip(members, longest, strict=True) if LONGER_BY * length <= epochs]


def _enqueued(study: Study, members: Sequence[FrozenTrial], epochs: float) -> int:
    for member in members:
        enqueue(study, member.params, epochs)
    return len(members)


def _behind(member: FrozenTrial, over: Sequence[FrozenTrial], spec: StudySpec) -> float:
    """Return how far a trial is behind the best, in shares of the range, over all objectives that training changes."""
    places = [at for at, objective in enumerate(spec.objectives) if not objective.is_cost]
    values = np.array([trial.values for trial in over])[:, places]
    signs = [1 if spec.objectives[at].direction == "maximize" else -1 for at in places]
    best = (values * signs).max(0)
    own = np.array(member.values)[places] * signs
    return float(((best - own) / np.maximum(np.ptp(values, axis=0), 1e-12)).sum())


def _length(trial: FrozenTrial) -> float:
    """Return the epochs for which a trial was, is, or will be trained."""
    gone = trial.state == TrialState.FAIL
    return 0.0 if gone else float(trial.user_attrs.get(EPOCHS, trial.user_attrs.get(ASKED, 0.0)))
