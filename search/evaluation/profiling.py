"""Profile networks on this machine; the latency model is fitted to these measurements."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from objectives.objective import Partwise
from search.costs.coarse_work import coarse_work
from search.costs.latency_model import MOST_NETWORKS, LatencyModel, MeasuredParts, at_best_clock
from search.evaluation.measured_parts import measurements_file
from search.evaluation.profiled_parts import ProfiledParts
from search.evaluation.profiled_plans import PROFILED_NETWORKS, profiled_params
from search.study import machine
from search.study.attributes import content_of
from search.study.console import console, track
from search.study.cpu_profile import MEASURING
from search.study.definition import define_value
from search.study.errors import raise_machine_fault, reason_of
from search.study.failed_plans import FIRST_FAILURES, FailedPlans
from search.study.files import load_or_nothing, save_json
from search.study.history import measured_trials
from search.study.records import AHEAD, RELATIVE
from spaces.network.messages import first_line
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from optuna import Study

    from objectives import Objective
    from objectives.layers import Parts
    from search.evaluation.context import Context
    from spaces import Plan

RATIOS = "ratios"  # key of a file with measured latencies
PARTS_SECONDS = 2.0  # CPU time for the parts of a network, over that of the network before it (chosen)
PROMISING_ROUNDS, PLANS_PER_ROUND = 2, 6  # round r measures up to 6 r of the most promising plans (chosen)


def fit_before_search(context: Context, seconds: float) -> None:
    """Fit a model of every minimized cost that no formula gives, so that a draft can use its predictions.

    Networks of random strengths, with each set of axes, are built and measured without training. Of a cost that can be
    measured on parts of a network, such as latency, single layers and blocks of each network are measured before the
    network itself: exporting a network takes as long as exporting many parts, and only the parts tell what a layer
    costs. Parts are kept for this machine and shared by all studies, networks are kept for the study's space and
    teacher, both in the folder named by the environment variable SLIMFRONT_MEASURED, by default `runs/measured`.

    Parameters
    ----------
    context
        The study.
    seconds
        CPU time that measuring may take; with 0 only earlier measurements are used.
    """
    for objective in context.spec.costs:
        if objective.name not in context.cost_model.formulas and objective.direction == "minimize":
            started = time.process_time()
            try:
                # workers of one machine would disturb each other's measurements, and each finds those of the other
                with context.workers.turn(f"measure on {machine.words()}"), context.cpu_profile.charge(MEASURING):
                    model, new = _fitted(context, objective, seconds)
            except Exception as error:  # noqa: BLE001 - a user's objective may raise anything; its trials report it too
                raise_machine_fault(error)
                console.print(
                    f"{objective.name} is not predicted, because measuring a network failed: {first_line(error)}"
                )
                continue
            if model is not None:
                context.cost_model.add_model(model)
                if new:
                    console.print(f"{model.words()}; measured in {time.process_time() - started:.0f} CPU seconds")


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
    if modelled:
        with context.workers.turn(f"measure promising plans on {machine.words()}"):
            if not any(where == machine.words() for *_, where in study.user_attrs.get(AHEAD, ())):
                if context.measuring_seconds > seconds:
                    console.print(
                        f"no promising plan is measured: one takes {context.measuring_seconds:.0f} s, and "
                        f"{seconds:.0f} s are planned for it"
                    )
                    best = _none
                _measure_ahead(study, context, best, seconds, modelled)
    refit(study, context)


def _none(_: int) -> list[dict[str, float]]:
    """Return no plans."""
    return []


def _measure_ahead(
    study: Study,
    context: Context,
    best: Callable[[int], list[dict[str, float]]],
    seconds: float,
    modelled: list[Objective],
) -> None:
    """Measure promising plans and store what was measured; see `measure_promising`."""
    found: dict[Plan, tuple[dict[str, float], dict[str, float], str]] = {}
    started = time.process_time()
    with track("measuring promising plans") as progress:
        # lazy, so that each round uses the models that were refitted in the round before
        rounds = (best(number * PLANS_PER_ROUND) for number in range(1, PROMISING_ROUNDS + 1))
        for params in itertools.chain.from_iterable(rounds):
            plan = context.plan(params)
            began = time.process_time()
            if (found or context.measuring_seconds) and began - started + context.measuring_seconds > seconds:
                break
            if plan in found:
                continue
            try:
                with context.cpu_profile.charge(MEASURING):
                    values = context.measure_costs(plan, context.subject.build_roughly(plan), modelled)
            except Exception as error:  # noqa: BLE001 - a trial of the plan will report any error
                reason = reason_of(error)
                console.print(f"a promising plan could not be measured: {reason} ({plan.words()})")
                values = {}
            context.measuring_seconds = time.process_time() - began
            over_teacher = context.cost_model.over_teacher(values)
            found[plan] = params, over_teacher, machine.words()
            context.cost_model.observe(plan, over_teacher)
            spent = (time.process_time() - started) / max(seconds, 1e-9)
            progress(max(len(found) / (PROMISING_ROUNDS * PLANS_PER_ROUND), spent))
    with context.workers.turn(AHEAD):
        study.set_user_attr(AHEAD, [*study.user_attrs.get(AHEAD, ()), *found.values()])


def refit(study: Study, context: Context) -> None:
    """Update the cost model with the study's measurements, by any worker on the same kind of machine.

    Measurements from other kinds of machines are ignored, because costs differ there. A formula that disagreed with a
    measurement is dropped.
    """
    cost_model = context.cost_model
    inexact, trials = measured_trials(study)
    cost_model.drop_formulas(inexact)
    if not cost_model.models:
        return
    for params, over_teacher, where in study.user_attrs.get(AHEAD, ()):
        if where == machine.words():
            cost_model.observe(context.plan(params), over_teacher)
    unread = {trial.number: trial for trial in trials if trial.number not in cost_model.trials_read}
    cost_model.trials_read |= unread.keys()
    for trial in list(unread.values())[-MOST_NETWORKS:]:
        over_teacher, where = content_of(trial, RELATIVE)
        if where == machine.words():
            cost_model.observe(context.plan(trial.params), over_teacher)


def _fitted(context: Context, objective: Objective, seconds: float) -> tuple[LatencyModel | None, bool]:
    """Return a model of the objective, None if nothing is measured, and whether something new was measured."""
    path = _path(context, objective)
    stored = load_or_nothing(path, {RATIOS: list}, "its networks are measured again")
    ratios: list[float | None] = stored.get(RATIOS, [])
    of_parts = ProfiledParts(context, objective) if isinstance(objective, Partwise) else None
    before = 0 if of_parts is None else len(of_parts)
    if not (seconds or ratios or before):
        return None, False
    began = time.process_time()
    teacher = objective(context.subject.finished)  # also loads the runtime, which is not repeated for each network
    known, now = len(ratios), time.process_time()
    if seconds and known < PROFILED_NETWORKS:
        for ratio in _measured(context, objective, of_parts, known, teacher, Timing(now - began, now, now + seconds)):
            ratios.append(ratio)
            save_json(path, {RATIOS: ratios})
    both = zip(profiled_params(context, objective), ratios, strict=False)
    worked = [(context.plan(params), ratio) for params, ratio in both if ratio is not None]
    plans = [None, *(plan for plan, _ in worked)]
    parts = architectures_of(context.cost_model.frame, plans).parts()
    work_of: Callable[[Parts], np.ndarray] = coarse_work
    measured = MeasuredParts(np.zeros((0, 0)), np.zeros(0))
    if of_parts:
        work_of, measured = of_parts.work_of, of_parts.measured
    costs = teacher * np.array([1.0, *(ratio for _, ratio in worked)])
    model = LatencyModel(objective.name, work_of, work_of(parts), costs, measured)
    return at_best_clock(model), len(ratios) > known or len(measured.values_S) > before


class Timing(NamedTuple):
    """CPU seconds: what the teacher took, when measuring began, and when it has to end."""

    teacher: float
    began: float
    until: float


def _measured(
    context: Context, objective: Objective, of_parts: ProfiledParts | None, known: int, teacher: float, timing: Timing
) -> Iterator[float | None]:
    """Measure networks, and parts of each before, until the time is up; yield each network's cost over the teacher's.

    At least one network is measured, or parts of one if the network would take too long. Of a network that fails, None
    is yielded.

    Raises
    ------
    Exception
        The error of a network, if the first networks all fail.
    """
    subject = context.subject
    seconds = timing.teacher  # CPU time of the last network, without its parts
    failed, worked = FailedPlans(f"measuring networks to predict {objective.name}"), 0
    with track(f"measuring networks to predict {objective.name}") as progress:
        for number, params in enumerate(
            itertools.islice(profiled_params(context, objective), known, PROFILED_NETWORKS), known
        ):
            began = time.process_time()
            plan = context.plan(params)
            try:
                network = subject.finish(subject.build_roughly(plan))
                built = time.process_time()
                if of_parts is not None:
                    too_long = built + seconds > timing.until
                    until = timing.until if too_long else min(built + PARTS_SECONDS * seconds, timing.until - seconds)
                    of_parts.measure(plan, network, teacher, until)
                    if too_long:
                        break
                measuring = time.process_time()
                ratio: float | None = _positive(objective(network)) / teacher
                worked += 1
                context.measuring_seconds = seconds = time.process_time() - measuring + built - began
            except Exception as error:
                failed.note(plan.words(), error)
                if not worked and failed.reasons.total() >= FIRST_FAILURES:
                    raise
                ratio = None
            yield ratio
            now = time.process_time()
            spent = (now - timing.began) / max(timing.until - timing.began, 1e-9)
            progress(max((number + 1) / PROFILED_NETWORKS, spent))
            if now + (seconds if of_parts is None else 0) > timing.until:
                break


def _positive(cost: float) -> float:
    """Return a cost; one that is not positive and finite cannot be predicted."""
    if not 0 < cost < math.inf:
        raise ValueError(f"a cost must be positive and finite to be predicted, but one network has {cost}")
    return cost


def _path(context: Context, objective: Objective) -> Path:
    definition = sorted(define_value(context.spec.space).items())
    plans = "joint-" if isinstance(objective, Partwise) else ""
    return measurements_file(plans + "{}.json", objective, context.subject.anatomy, definition)
