"""The learning rate of a study's trainings: a range test on one of the initial designs, as long as there is time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from search.proposals.sensitivity_table import safe_log
from search.proposals.table_losses import LEAST_COUNTED_INPUTS, proxy_loss_of
from search.study.console import console, step
from search.study.cpu_profile import BUILDING, TRAINING
from search.study.errors import raise_machine_fault, reason_of
from search.study.failed_plans import FailedPlans
from search.study.queue import fixed
from search.study.records import ASKED, RANGE
from search.training.learning_rate import (
    DEFAULT_RATE,
    FIRST_RATE,
    LEAST_TEST_STEPS,
    MAX_TRAINABLE_LOSS,
    QUICK_LENGTH,
    QUICK_TEST_STEPS,
    TEST_STEPS,
    Rate,
    quick_test,
    range_test,
)

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from spaces import Plan

RANGE_TEST_SHARE = 0.15  # of the budget's time: about the most that a range test takes (chosen)
USUAL_RATES = 4  # learning rates that a range test tries, or the time of as many (chosen)


def range_tested(study: Study, context: Context, clock: BudgetClock | None = None) -> Rate | None:
    """Return the learning rate of a range test, run once per study; None if the recipe has a learning rate.

    In a budget with a time the test is shortened, or left out, so that it takes about 15% of the time at most.

    The test uses the smallest network of the initial designs: almost any rate suits a network with a small loss, so a
    test on it shows little. But a network with a very large loss may not be trainable, and the rates that seem best for
    it ruin others. So the test uses the smallest network that is known to be trainable; if there is none, the network
    with the smallest loss.
    """
    recipe = context.spec.recipe
    if recipe.learning_rate is not None:
        return None
    with context.workers.turn("the range test"):
        if RANGE not in study.user_attrs:
            if clock is not None and not clock.left:
                console.print(f"no range test, since no time is left: the learning rate is {DEFAULT_RATE.rate}")
                return DEFAULT_RATE  # not stored, so that a run that goes on tests
            with step("testing learning rates"):
                study.set_user_attr(RANGE, _found_rate(context, initial_designs(study, context), clock))
    return Rate(*study.user_attrs[RANGE])


def _found_rate(context: Context, plans: list[Plan], clock: BudgetClock | None) -> Rate:
    """Return the learning rate that a range test finds, or `_quickly_found_rate` if there is no time for it."""
    spec, smallest = context.spec, plans[-1]
    # a large network takes long for the losses of its plans, and usually the smallest one has the quickest steps
    steps = _steps_in_time(context, smallest, clock)
    if steps >= LEAST_TEST_STEPS:
        plan = _smallest_trainable(plans, context)
        steps = steps if plan == smallest else _steps_in_time(context, plan, clock)
    if clock is not None and steps < LEAST_TEST_STEPS:
        return _quickly_found_rate(context, plans, clock)
    model, first, judge = context.build(plan), FIRST_RATE, None
    given = context.teacher, spec.splits.train, plan.recovery, spec.recipe, spec.seed
    with context.cpu_profile.charge(TRAINING):
        if steps < TEST_STEPS:  # then few rates can be tried
            judge = context.rating_loss
            try:
                first = Rate(quick_test(model, *given), 1.0, QUICK_LENGTH).at(1.0, steps)
            except Exception as error:  # noqa: BLE001 - of an unusual optimizer; other rates may be tried
                raise_machine_fault(error)
        rate = range_test(model, *given, steps, first, judge)
    shorter = f" in {steps} steps, since the time is short" if steps < TEST_STEPS else ""
    console.print(
        f"the range test found a learning rate of {rate:.2g}{shorter}; it is scaled to each network's loss and steps"
    )
    return Rate(rate, context.rating_loss(model), steps)


def _quickly_found_rate(context: Context, plans: list[Plan], clock: BudgetClock) -> Rate:
    """Return the learning rate that single steps show, or the usual one if there is no time for them, or they fail."""
    spec, tests = context.spec, f"{USUAL_RATES} trainings of {LEAST_TEST_STEPS} steps"
    why = f"no range test, since {tests} would take over {RANGE_TEST_SHARE:.0%} of the time"
    scaled = "it is scaled to each network's loss and steps; Recipe(learning_rate=...) names another"
    try:
        for plan in (plans[len(plans) // 2], plans[0]):  # if the middle one hardly can be trained, the largest
            if USUAL_RATES * _steps_in_time(context, plan, clock) < QUICK_TEST_STEPS:
                break
            model = context.build(plan, again=True)
            loss = context.rating_loss(model)
            if loss <= MAX_TRAINABLE_LOSS or plan == plans[0]:
                given = context.teacher, spec.splits.train, plan.recovery, spec.recipe, spec.seed
                with context.cpu_profile.charge(TRAINING):
                    rate = quick_test(model, *given)
                console.print(f"{why}: single steps find a learning rate of {rate:.2g}; {scaled}")
                return Rate(rate, loss, QUICK_LENGTH)
    except Exception as error:  # noqa: BLE001 - of this plan; another one may be trained
        raise_machine_fault(error)
        why += f", and single steps fail: {reason_of(error)}"
    console.print(f"{why}: the learning rate is {DEFAULT_RATE.rate}; {scaled}")
    return DEFAULT_RATE


def _steps_in_time(context: Context, plan: Plan, clock: BudgetClock | None) -> int:
    """Return the steps of each training of a range test with this plan; as many as usual if it cannot be timed."""
    if clock is None or not clock.timed:
        return TEST_STEPS
    seconds = clock.allowed(RANGE_TEST_SHARE) / USUAL_RATES
    try:
        model = context.build(plan, again=True)
        with context.cpu_profile.charge(TRAINING):
            return min(TEST_STEPS, int(seconds / context.step_seconds(model, plan, context.spec.recipe, 2, seconds)))
    except Exception as error:  # noqa: BLE001 - of this plan; another one may be trained
        raise_machine_fault(error)
        return TEST_STEPS


def _smallest_trainable(plans: list[Plan], context: Context) -> Plan:
    """Return the last of ever smaller plans that is known to be trainable, or the plan with the smallest loss."""

    def loss_of(plan: Plan) -> float:
        try:
            return proxy_loss_of(context, plan, LEAST_COUNTED_INPUTS)
        except Exception as error:  # noqa: BLE001 - a plan may fail in any way
            failed.note(plan.words(), error)
            return math.inf

    failed = FailedPlans("the range test")
    losses: dict[Plan, float] = {}
    with context.cpu_profile.charge(BUILDING):
        for plan in reversed(plans):
            losses[plan] = loss_of(plan)
            if losses[plan] <= MAX_TRAINABLE_LOSS:
                return plan
    failed.ensure_some_work(len(plans) - failed.reasons.total())
    return min(plans, key=losses.__getitem__)


def initial_designs(study: Study, context: Context) -> list[Plan]:
    """Return the plans that were enqueued, the largest network first; a uniform plan of half strength without any.

    Their size is the mean of the logarithms of the costs that a formula gives; without one they stay in their order.
    """
    space = context.spec.space
    half = space.uniform(context.subject.anatomy, (0.5,) * len(space.steps))
    enqueued = [fixed(trial) for trial in study.get_trials(deepcopy=False) if ASKED not in trial.user_attrs]
    # a trial that ended while its plan was drawn lacks parameters
    plans = [context.plan(params) for params in enqueued if half.keys() <= params.keys()] or [context.plan(half)]
    return sorted(plans, key=lambda plan: -safe_log(np.array([*context.cost_model.predict(plan).exact.values()])).sum())
