"""The command `run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.command_line import EXIT_STOPPED, study_arguments
from search.commands.loading import loaded, on_runtime, with_weights
from search.commands.showing import members_of, show_front
from search.evaluation.reference import bounded, measure_teacher, prepared
from search.loop.run import run
from search.proposals.proxy_correlation import prediction_report
from search.results.export import VerificationTime, verify_front
from search.results.inspection import counted
from search.study.budget_clock import BudgetClock
from search.study.console import console
from search.study.cpu_profile import FILES
from search.study.files import ensure_writable
from search.study.front import front, need_front
from search.study.goal import limits_of_goal, measured_for_goal, with_stored_goal
from search.study.machine import device_named
from search.study.storage import open_study
from search.study.stored import remember

if TYPE_CHECKING:
    import argparse

    from search.study.spec import StudySpec


def command(options: argparse.Namespace) -> int:
    """Search for the Pareto front, then export, verify and print it; return the exit code."""
    spec, folder = loaded(options)
    ensure_writable(folder)
    study = open_study(spec, folder, options.storage, create=True)
    remember(folder, spec.name, options.study, options.set)
    spec = on_runtime(options, with_stored_goal(study, spec))
    context, reference = prepared(spec, device_named(options.device), folder)
    context = bounded(study, context)
    teacher = measure_teacher(study, context)
    console.print(f"teacher: {', '.join(f'{name} {value:,.6g}' for name, value in teacher.items())}")
    console.print(f"teacher's file: {reference.stat().st_size:,} bytes, {reference}")
    for left_out in counted(context.subject.model, context.subject.example)[1]:
        console.print(left_out, markup=False)
    _print_limits(context.spec)
    clock = BudgetClock(context.spec.budget, *options.start)
    verifying = VerificationTime(context, folder, reference, wall=spec.budget.minutes is not None)
    reserve = None if options.unverified else lambda: verifying.of(with_weights(front(study), folder))
    if not run(study, context, folder, clock, reserve):
        count = len(front(study))
        console.print(f"stopped with {count} members on the front; continue with: {options.command_line}", markup=False)
        return EXIT_STOPPED
    trials = need_front(study, spec)
    with context.cpu_profile.charge(FILES):
        clock.reserved = 0.0  # the reserve is for these files
        weights = with_weights(trials, folder)
        failures = [] if options.unverified else verify_front(weights, context, folder, reference, clock)
    show_front(study, context.spec, members_of(study, spec, folder), options.format)
    if note := prediction_report(study, context.spec):
        console.print(note)
    console.print(context.cpu_profile.words())
    for failure in failures:
        console.print(f"slimfront: {failure}", markup=False)
    console.print(f"for pictures: slimfront report {study_arguments(options)}", markup=False)
    best = "goal" if spec.goal else "knee"
    console.print(f"for a file: slimfront export {study_arguments(options)} --pick {best}", markup=False)
    return 1 if failures else 0


def _print_limits(spec: StudySpec) -> None:
    """Print the phrases of the goal and the limits relative to the teacher, with their bounds."""
    phrases = {str(limit): f"goal {phrase!r}: " for phrase, limit in limits_of_goal(spec)}
    added = measured_for_goal(spec)
    for limit in spec.limits:
        if str(limit) in phrases or limit.is_relative:
            note = "; measured for this goal" if limit.objective.name in added else ""
            console.print(f"{phrases.get(str(limit), 'limit: ')}{limit.words}{note}")
