"""Profile networks on this machine; the latency model is fitted to these measurements."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search.costs.latency_model import LatencyModel, work
from search.study import machine
from search.study.console import console, track
from search.study.cpu_profile import MEASURING
from search.study.definition import define_value
from search.study.files import save_json
from search.study.records import AHEAD, INEXACT, RELATIVE
from spaces.network.messages import first_line
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study

    from objectives import Objective
    from search.evaluation.context import Context
    from spaces import Plan


PROFILED_NETWORKS = 20  # networks that are profiled before a search (chosen)
MIN_PROFILED_NETWORKS = 8  # profiled networks; with fewer no model is fitted
PROMISING_ROUNDS, PLANS_PER_ROUND = 2, 6  # round r measures up to 6 r of the most promising plans (chosen)
MIXED_PLANS = 4  # uniform plans; a profiled plan takes each parameter from one of them (chosen)
MEASUREMENTS_VARIABLE = "SLIMFRONT_MEASURED"  # the environment variable that names the folder of measurements


def fit_before_search(context: Context, seconds: float) -> None:
    """Fit a model of every minimized cost that no formula gives, so that a draft can use its predictions.

    Networks of random strengths, with each set of axes, are built and measured without training. The measurements are
    kept, for this machine, in the folder named by the environment variable SLIMFRONT_MEASURED, by default
    `runs/measured`. If measuring would take too long or fails, the cost gets no model, and a message says so.

    Parameters
    ----------
    context
        The study.
    seconds
        CPU time that measuring may take; with 0 only earlier measurements are used.
    """
    for objective in context.spec.costs:
        if objective.name not in context.cost_model.formulas and objective.direction == "minimize":
            try:
                ratios = _measured_ratios(context, objective, seconds)
                if len(ratios) < MIN_PROFILED_NETWORKS:
                    if seconds:
                        console.print(
                            f"{objective.name} is not predicted, because measuring {MIN_PROFILED_NETWORKS} networks "
                            "would take too long"
                        )
                    continue
                with context.cpu_profile.charge(MEASURING):
                    teacher = objective(context.subject.finished)
            except Exception as error:  # noqa: BLE001 - a user's objective may raise anything; its trials report it too
                console.print(
                    f"{objective.name} is not predicted, because measuring a network failed: {first_line(error)}"
                )
                continue
            plans = [
                None,
                *(context.plan(params) for params in itertools.islice(_profiled_params(context), len(ratios))),
            ]
            parts = architectures_of(context.cost_model.frame, plans).parts()
            values = teacher * np.array([1.0, *ratios])
            context.cost_model.add_model(LatencyModel(objective.name, work(parts), values))


def measure_promising(
    study: Study, context: Context, best: Callable[[int], list[dict[str, float]]], seconds: float
) -> None:
    """Measure some plans that a search is about to consider, and refit the cost models; do nothing without models.

    These plans differ from random networks, so a model fitted on random networks predicts their costs badly. The
    measurements are stored in the study, for other workers on the same kind of machine and for a resumed run.

    Parameters
    ----------
    study, context
        The study.
    best
        Returns the parameters of about as many plans as its argument, the best by the current models.
    seconds
        CPU time that measuring may take.
    """
    models = context.cost_model.models
    modelled = [objective for objective in context.spec.costs if objective.name in models]
    if modelled and not any(where == machine.words() for *_, where in study.user_attrs.get(AHEAD, ())):
        found: dict[Plan, tuple[dict[str, float], dict[str, float], str]] = {}
        started = time.process_time()
        with track("measuring promising plans") as progress:
            # lazy, so that each round uses the models that were refitted in the round before
            rounds = (best(number * PLANS_PER_ROUND) for number in range(1, PROMISING_ROUNDS + 1))
            for params in itertools.chain.from_iterable(rounds):
                plan = context.plan(params)
                if found and time.process_time() - started > seconds:
                    break
                if plan in found:
                    continue
                try:
                    with context.cpu_profile.charge(MEASURING):
                        values = context.measure_costs(plan, context.subject.build_roughly(plan), modelled)
                except Exception as error:  # noqa: BLE001 - a trial of the plan will report any error
                    console.print(f"a promising plan could not be measured: {first_line(error)}")
                    values = {}
                over_teacher = context.cost_model.over_teacher(values)
                found[plan] = params, over_teacher, machine.words()
                context.cost_model.observe(plan, over_teacher)
                progress(min(1.0, len(found) / (PROMISING_ROUNDS * PLANS_PER_ROUND)))
        study.set_user_attr(AHEAD, [*study.user_attrs.get(AHEAD, ()), *found.values()])
    refit(study, context)


def refit(study: Study, context: Context) -> None:
    """Update the cost model with the study's measurements, by any worker on the same kind of machine.

    Measurements from other kinds of machines are ignored, because costs differ there. A formula that disagreed with a
    measurement is dropped.
    """
    cost_model = context.cost_model
    trials = study.get_trials(deepcopy=False)
    cost_model.drop_formulas(name for trial in trials for name in trial.user_attrs.get(INEXACT, ()))
    if not cost_model.models:
        return
    for params, over_teacher, where in study.user_attrs.get(AHEAD, ()):
        if where == machine.words():
            cost_model.observe(context.plan(params), over_teacher)
    for trial in trials:
        if RELATIVE in trial.user_attrs and trial.number not in cost_model.trials_read:
            cost_model.trials_read.add(trial.number)
            over_teacher, where = trial.user_attrs[RELATIVE]
            if where == machine.words():
                cost_model.observe(context.plan(trial.params), over_teacher)


def _measured_ratios(context: Context, objective: Objective, seconds: float) -> list[float]:
    """Return the costs of the profiled networks relative to the teacher's; measure those that are not known yet.

    Raises
    ------
    ValueError
        If a cost is not positive and finite.
    """
    path = _path(context, objective)
    ratios: list[float] = json.loads(path.read_text()) if path.exists() else []
    known = len(ratios)
    if known >= PROFILED_NETWORKS or not seconds:
        return ratios
    subject = context.subject
    with track(f"measuring networks to predict {objective.name}") as progress, context.cpu_profile.charge(MEASURING):
        until = time.process_time() + seconds
        teacher = objective(subject.finished)  # also loads the runtime, so it does not count as time per network
        started = time.process_time()
        for params in itertools.islice(_profiled_params(context), known, PROFILED_NETWORKS):
            ratio = objective(subject.finish(subject.build_roughly(context.plan(params)))) / teacher
            if not 0 < ratio < math.inf:
                raise ValueError(
                    f"a cost must be positive and finite to be predicted, but one network has {ratio * teacher}"
                )
            ratios.append(ratio)
            progress(len(ratios) / PROFILED_NETWORKS)
            now = time.process_time()
            needed = max(MIN_PROFILED_NETWORKS - len(ratios), 1)
            if now + needed * (now - started) / (len(ratios) - known) > until:
                break
    save_json(path, ratios)
    return ratios


def _profiled_params(context: Context) -> Iterator[dict[str, float]]:
    """Yield the parameters of the plans to profile, the same ones in every process."""
    space, anatomy = context.spec.space, context.subject.anatomy
    rng = np.random.default_rng(0)
    axes = len(space.steps)
    for mask in itertools.cycle(mask for mask in itertools.product((1, 0), repeat=axes) if any(mask)):
        mixed = [space.uniform(anatomy, tuple(rng.random(axes) * mask)) for _ in range(MIXED_PLANS)]
        yield {name: mixed[rng.integers(MIXED_PLANS)][name] for name in mixed[0]}


def _path(context: Context, objective: Objective) -> Path:
    definition = sorted(define_value(context.spec.space).items())
    key = repr((machine.identity(), objective, context.subject.anatomy, definition))
    return (
        Path(os.environ.get(MEASUREMENTS_VARIABLE, "runs/measured"))
        / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    )
