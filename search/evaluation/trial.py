"""One trial: choose a plan, reject it early or build, train and measure its network."""

from __future__ import annotations

import hashlib
import math
import time
from typing import TYPE_CHECKING

from optuna import TrialPruned

from search.costs.cost_model import inexact
from search.evaluation.before_training import BeforeTraining, metrics_after
from search.evaluation.earlier_trials import (
    costs_of,
    excess_of_costs,
    leave_to_other,
    replay,
    same_plan,
    shorter_training,
)
from search.evaluation.early_stopping import EarlyStopping
from search.evaluation.trial_checkpoint import TrialCheckpoint
from search.study import machine
from search.study.attributes import keyed, put, put_constraints, put_content, put_numbers
from search.study.console import console
from search.study.errors import Diverged
from search.study.records import (
    EPOCHS,
    EXCESS,
    INEXACT,
    KEY,
    PLAN,
    PREDICTED,
    RATE,
    REASON,
    RELATIVE,
    SECONDS,
    STORE,
    VALUES,
    WEIGHTS,
)
from search.study.weights import restore, save_state, state_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna import Trial

    from search.evaluation.context import Context
    from search.study.spec import Recipe, StudySpec
    from search.training.learning_rate import Rate
    from spaces import Plan


def key_of(plan: Plan) -> str:
    """Return a digest of a plan; equal plans have equal digests in every process."""
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:16]


def seed_of(spec: StudySpec, key: str, turn: int = 0) -> int:
    """Return the training seed of a plan; it depends on the plan, not on the order of training."""
    return int(hashlib.sha256(f"{spec.seed}:{key}:{turn}".encode()).hexdigest()[:8], 16)


def run_trial(
    trial: Trial,
    context: Context,
    folder: Path,
    recipe: Recipe,
    progress: Callable[[float], None],
    *,
    rate: Rate | None = None,
    strict: bool = False,
) -> tuple[float, ...]:
    """Return the values of the study's objectives for the plan that the trial suggests.

    Parameters
    ----------
    trial, context
        The trial, and the context of the study.
    folder
        Folder for the weights.
    recipe
        Recipe of the training.
    progress
        Called with the share of the training that is done.
    rate
        The result of a range test, if the recipe has no learning rate.
    strict
        See `EarlyStopping`.

    Raises
    ------
    TrialPruned
        If a limit is exceeded before training, or early stopping ends the training.
    Diverged
        If the loss or an objective is not finite.
    """
    spec = context.spec
    started = time.process_time()
    plan = context.recovering(spec.space.suggest(trial, context.subject.anatomy))
    key = key_of(plan)
    put(trial, {KEY: key, PLAN: plan.words()})
    with context.workers.ticket(f"train {key} for {recipe.epochs} epochs") as ticket:
        ahead = ticket.ahead()
        if (earlier := same_plan(trial.study, key, trial.number, recipe.epochs)) is not None:
            return replay(trial, earlier)
        if ahead:
            leave_to_other(trial, key)
        values = _trained(trial, context, folder, recipe, progress, plan, rate=rate, strict=strict)
        trial.set_user_attr(SECONDS, time.process_time() - started)
        return values


def _trained(
    trial: Trial,
    context: Context,
    folder: Path,
    recipe: Recipe,
    progress: Callable[[float], None],
    plan: Plan,
    *,
    rate: Rate | None,
    strict: bool,
) -> tuple[float, ...]:
    """Return the values of a plan that no other trial has trained as long; the parameters are those of `run_trial`."""
    spec, key, started = context.spec, key_of(plan), time.process_time()
    predicted = context.cost_model.predict(plan)
    put_numbers(trial, PREDICTED, predicted.modelled)
    _reject(trial, spec, predicted.exact)
    shorter = shorter_training(trial.study, key, folder)
    known = {} if shorter is None else excess_of_costs(shorter, spec)
    if shorter is None:
        _reject_by_prediction(trial, context, predicted.modelled)
        model = context.build(plan)
        values = context.measure_costs(plan, model, spec.costs)
        if over_teacher := context.cost_model.over_teacher(values):
            put_content(trial, RELATIVE, (over_teacher, machine.words()))
    else:
        model = context.build(plan)
        restore(model, state_path(folder, shorter.number), shorter.user_attrs.get(WEIGHTS))
        values = costs_of(shorter, spec)
    if names := inexact(predicted.exact, values):
        put_content(trial, INEXACT, names)
        differences = (f"{name} is {values[name]:,.9g}, computed as {predicted.exact[name]:,.9g}" for name in names)
        console.print(f"trial {trial.number} ({plan.words()}): {'; '.join(differences)}")
    _reject(trial, spec, values, known)
    _record(trial, spec, values, known)
    trial.set_user_attr(EPOCHS, recipe.epochs)
    recipe = context.with_rate(recipe, model, rate)
    trial.set_user_attr(RATE, recipe.learning_rate)
    stopping = EarlyStopping(trial, context, model, values, recipe.epochs, progress, strict=strict)
    checkpoint = TrialCheckpoint(
        trial, context.store, folder, (key, seed_of(spec, key), recipe.epochs, recipe.batch_size)
    )
    before = BeforeTraining(context, model) if recipe.epochs else None
    try:
        context.train(model, plan, recipe, seed_of(spec, key), stopping, checkpoint.here)
    except TrialPruned:
        _constrain(trial, spec, _excess(spec, values) | known)
        trial.set_user_attr(SECONDS, time.process_time() - started)
        checkpoint.remove()
        raise
    except Diverged:
        checkpoint.remove()
        raise
    values |= metrics_after(trial, context, model, before)
    _constrain(trial, spec, _record(trial, spec, values, known))
    digest = save_state(model, state_path(folder, trial.number))
    trial.set_user_attr(WEIGHTS, digest)
    if context.store is not None:
        context.store.upload(state_path(folder, trial.number), digest)
        trial.set_user_attr(STORE, context.store.url)
    checkpoint.remove()
    return tuple(values[objective.name] for objective in spec.objectives)


def _record(
    trial: Trial, spec: StudySpec, values: dict[str, float], known: dict[str, float] | None = None
) -> dict[str, float]:
    """Record the measured values and the relative excess over each limit, as far as not `known`; return the excess.

    Raises
    ------
    Diverged
        If a value is not finite.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"the objective {name} is {value}")
    excess = _excess(spec, values) | (known or {})
    put(trial, keyed(VALUES, values) | keyed(EXCESS, excess))
    return excess


def _reject(trial: Trial, spec: StudySpec, values: dict[str, float], known: dict[str, float] | None = None) -> None:
    """End the trial if these costs exceed a limit; only then record them.

    Raises
    ------
    TrialPruned
        If a limit is exceeded.
    """
    exceeded = _exceeded(spec, _excess(spec, values) | (known or {}))
    if exceeded:
        _constrain(trial, spec, _record(trial, spec, values, known))
        trial.set_user_attr(REASON, f"exceeds the limit {exceeded}")
        raise TrialPruned


def _reject_by_prediction(trial: Trial, context: Context, predicted: dict[str, float]) -> None:
    """End the trial unmeasured if a predicted cost exceeds its limit by more than the median error of its model.

    Raises
    ------
    TrialPruned
        If it does.
    """
    predicted_excess = {}
    for limit in context.spec.limits:
        name = limit.objective.name
        if name in predicted:
            predicted_excess[str(limit)] = limit.excess(predicted[name] * (1 - context.cost_model.error(limit)))
    exceeded = _exceeded(context.spec, predicted_excess)
    if exceeded:
        _constrain(trial, context.spec, predicted_excess)
        trial.set_user_attr(REASON, f"predicted to exceed the limit {exceeded}, so it was not measured")
        raise TrialPruned


def _exceeded(spec: StudySpec, excess: dict[str, float]) -> str:
    """Return the limits that are exceeded, in words."""
    return ", ".join(limit.words for limit in spec.limits if excess.get(str(limit), 0.0) > 0)


def _excess(spec: StudySpec, values: dict[str, float]) -> dict[str, float]:
    return {str(x): x.excess(values[x.objective.name]) for x in spec.limits if x.objective.name in values}


def _constrain(trial: Trial, spec: StudySpec, excess: dict[str, float]) -> None:
    """Report all limits to Optuna, once per trial and in a fixed order; a limit not measured yet counts as met."""
    put_constraints(trial, (excess.get(str(limit), 0.0) for limit in spec.limits))
