"""Measure networks on this machine, from which the latency model is fitted."""

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


NETWORKS, LEAST_NETWORKS = 20, 8  # networks that are measured before a search; a model is fitted to no fewer
ROUNDS, PLANS_A_ROUND = 2, 6  # of promising plans that are measured before a draft
MIXED = 4  # uniform plans of which a measured one takes each parameter from one
FOLDER = "SLIMFRONT_MEASURED"


def fit_before_search(context: Context, seconds: float) -> None:
    """Fit a model of every cost that is to be small and that no formula gives, so that a draft can search it.

    Networks of random strengths, each axis alone and together, are built and measured, not trained. What was measured
    is kept, for this machine, in the folder that the environment variable SLIMFRONT_MEASURED names, by default
    `runs/measured`. Where that would take too long or fails, the cost gets no model, and that is said.

    Parameters
    ----------
    context
        The study.
    seconds
        CPU time that measuring may take; with 0 only kept measurements are used.
    """
    for objective in context.spec.costs:
        if objective.name not in context.cost_model.formulas and objective.direction == "minimize":
            try:
                ratios = _measured(context, objective, seconds)
                if len(ratios) < LEAST_NETWORKS:
                    if seconds:
                        console.print(
                            f"{objective.name} is not predicted: measuring {LEAST_NETWORKS} networks "
                            "would take too long"
                        )
                    continue
                with context.cpu_profile.charge(MEASURING):
                    teacher = objective(context.subject.finished)
            except Exception as error:  # noqa: BLE001 - an objective may be anyone's; its trials will say so too
                console.print(f"{objective.name} is not predicted: measuring a network failed: {first_line(error)}")
                continue
            plans = [None, *(context.plan(params) for params in itertools.islice(_params(context), len(ratios)))]
            parts = architectures_of(context.cost_model.frame, plans).parts()
            values = teacher * np.array([1.0, *ratios])
            context.cost_model.add_model(LatencyModel(objective.name, work(parts), values))


def measure_promising(
    study: Study, context: Context, best: Callable[[int], list[dict[str, float]]], seconds: float
) -> None:
    """Measure some of the plans that a search is about to look at, where a cost has a model, and refit that.

    They are unlike random networks, from which their costs are predicted badly. The measurements lie in the study, for
    other workers on such a machine and for when the study goes on.

    Parameters
    ----------
    study, context
        The study.
    best
        Returns the parameters of about so many plans, the best as far as is known by then.
    seconds
        CPU time that measuring may take.
    """
    models = context.cost_model.models
    modelled = [objective for objective in context.spec.costs if objective.name in models]
    if modelled and not any(where == machine.words() for *_, where in study.user_attrs.get(AHEAD, ())):
        found: dict[Plan, tuple[dict[str, float], dict[str, float], str]] = {}
        started = time.process_time()
        with track("measuring promising plans") as progress:
            rounds = (best(number * PLANS_A_ROUND) for number in range(1, ROUNDS + 1))  # each by the refitted model
            for params in itertools.chain.from_iterable(rounds):
                plan = context.plan(params)
                if found and time.process_time() - started > seconds:
                    break
                if plan in found:
                    continue
                try:
                    with context.cpu_profile.charge(MEASURING):
                        values = context.measure_costs(plan, context.subject.build_roughly(plan), modelled)
                except Exception as error:  # noqa: BLE001 - whatever it is, a trial will say so
                    console.print(f"a plan could not be measured: {first_line(error)}")
                    values = {}
                over_teacher = context.cost_model.over_teacher(values)
                found[plan] = params, over_teacher, machine.words()
                context.cost_model.observe(plan, over_teacher)
                progress(min(1.0, len(found) / (ROUNDS * PLANS_A_ROUND)))
        study.set_user_attr(AHEAD, [*study.user_attrs.get(AHEAD, ()), *found.values()])
    refit(study, context)


def refit(study: Study, context: Context) -> None:
    """Bring the cost model up to date with what lies in the study: measurements of any worker on such a machine.

    On other machines costs are others, and what was measured there is left out. A formula that was seen not to hold is
    dropped.
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


def _measured(context: Context, objective: Objective, seconds: float) -> list[float]:
    """Return what the first networks cost, over what the teacher does; those that are not known yet are measured."""
    path = _path(context, objective)
    ratios: list[float] = json.loads(path.read_text()) if path.exists() else []
    known = len(ratios)
    if known >= NETWORKS or not seconds:
        return ratios
    subject = context.subject
    with track(f"measuring networks to predict {objective.name}") as progress, context.cpu_profile.charge(MEASURING):
        until = time.process_time() + seconds
        teacher = objective(subject.finished)  # with all that a runtime loads once
        started = time.process_time()
        for params in itertools.islice(_params(context), known, NETWORKS):
            ratio = objective(subject.finish(subject.build_roughly(context.plan(params)))) / teacher
            if not 0 < ratio < math.inf:
                raise ValueError(f"a cost must be positive to be predicted, but got {ratio * teacher} on a network")
            ratios.append(ratio)
            progress(len(ratios) / NETWORKS)
            now = time.process_time()
            more = max(LEAST_NETWORKS - len(ratios), 1)
            if now + more * (now - started) / (len(ratios) - known) > until:
                break
    save_json(path, ratios)
    return ratios


def _params(context: Context) -> Iterator[dict[str, float]]:
    """Yield the parameters of the plans to measure, always the same."""
    space, anatomy = context.spec.space, context.subject.anatomy
    dice = np.random.default_rng(0)
    axes = len(space.steps)
    for mask in itertools.cycle(mask for mask in itertools.product((1, 0), repeat=axes) if any(mask)):
        mixed = [space.uniform(anatomy, tuple(dice.random(axes) * mask)) for _ in range(MIXED)]
        yield {name: mixed[dice.integers(MIXED)][name] for name in mixed[0]}


def _path(context: Context, objective: Objective) -> Path:
    definition = sorted(define_value(context.spec.space).items())
    key = repr((machine.identity(), objective, context.subject.anatomy, definition))
    return Path(os.environ.get(FOLDER, "runs/measured")) / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
