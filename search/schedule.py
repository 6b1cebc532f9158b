"""How long, and at which learning rate, the candidates of a study are trained."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from optuna.trial import FixedTrial, TrialState

from search.front import front, trained
from search.progress import console
from search.rates import TESTED, Rate, range_test
from search.shares import TRAINING
from search.storage import ASKED, enqueue, fixed, params_of
from search.trial import EPOCHS, SECONDS

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.bench import Bench
    from search.clock import Clock
    from search.spec import Recipe

RANGE = "range_test"  # attribute of a study: what it gave
ENOUGH = 12  # candidates that must be trained in the time that is left, or trainings are shortened
LEAST_STEPS = 25  # of a training
LAST = 0.25  # share of the time, at its end, in which members of the front are trained on where trainings are short
WORTH = 1.5  # times the epochs that a member had: below that, training it again is not worth its time


def rated(study: Study, bench: Bench) -> Rate | None:
    """Return the learning rate of a range test, which is made once a study; None where the recipe names its own.

    The test is made on the last of the plans that the study starts with, the smallest network: what has lost little is
    served by almost any rate, and a test on it tells little.
    """
    recipe, space = bench.spec.recipe, bench.spec.space
    if recipe.learning_rate is not None:
        return None
    if RANGE not in study.user_attrs:
        first = [fixed(trial) for trial in study.get_trials(deepcopy=False) if fixed(trial)]
        params = first[-1] if first else space.uniform(bench.anatomy, (0.5,) * len(space.steps))
        plan = space.suggest(FixedTrial(space.recovery.usual() | params), bench.anatomy)
        model = bench.build(plan)
        with bench.shares.spending(TRAINING):
            train = bench.spec.splits.train
            rate = range_test(model, bench.teacher, train, plan.recovery, recipe, bench.spec.seed)
            study.set_user_attr(RANGE, Rate(rate, bench.score(model), TESTED))
        console.print(f"learning rate {rate:.2g} by a range test; others by what a network lost, and its steps")
    return Rate(*study.user_attrs[RANGE])


def affordable(bench: Bench, clock: Clock, recipe: Recipe) -> Recipe:
    """Return the recipe, shortened where the time that is left would not train candidates enough."""
    if not clock.timed:
        return recipe
    train = bench.spec.splits.train
    a_candidate = bench.seconds_a_step(recipe) * recipe.steps(len(train))
    if clock.left >= ENOUGH * a_candidate:
        return recipe
    share = (clock.left - LAST * clock.total) / (ENOUGH * a_candidate)
    short = recipe.longer(min(1.0, max(share, LEAST_STEPS / recipe.steps(len(train)))))
    count, part = short.steps(len(train)), short.epochs / recipe.epochs
    console.print(f"candidates are trained for {count} steps, {part:.0%} of the recipe, to be in time")
    return short


def prolong(study: Study, most: float, seconds: float) -> int:
    """Enqueue the members of the front to be trained on, as long as the time allows; return how many there are.

    Parameters
    ----------
    study
        Of which every trained trial says how long it took.
    most
        Epochs of the longest training that is wanted.
    seconds
        CPU time for all of them.
    """
    members = front(study)
    each = [trial.user_attrs[SECONDS] / trial.user_attrs[EPOCHS] for trial in trained(study)]
    if not members:
        return 0
    epochs = min(most, seconds / (len(members) * statistics.fmean(each)))
    return promote(study, epochs)


def promote(study: Study, epochs: float) -> int:
    """Enqueue the members of the front that were trained for clearly less; return how many."""
    over = study.get_trials(deepcopy=False)
    count = 0
    for member in front(study):
        same = [trial for trial in over if params_of(trial) == member.params]
        if WORTH * max(_length(trial) for trial in same) <= epochs:
            enqueue(study, member.params, epochs)
            count += 1
    return count


def _length(trial: FrozenTrial) -> float:
    """Return the epochs for which a trial was, is, or will be trained."""
    gone = trial.state == TrialState.FAIL
    return 0.0 if gone else float(trial.user_attrs.get(EPOCHS, trial.user_attrs.get(ASKED, 0.0)))
