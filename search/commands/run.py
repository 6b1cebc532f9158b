"""The command `run`."""

from __future__ import annotations

import math
import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

import torch

from objectives.objective import in_digits
from search.command_line import SHORTEST, STORAGE_VARIABLE, study_arguments, study_words
from search.command_parser import EXIT_STOPPED
from search.commands.loading import with_weights
from search.commands.searching import Search, opened_search
from search.commands.showing import members_of, show_front
from search.engines.crew import Crew
from search.engines.on_ray import OnRay
from search.engines.processes import Processes
from search.evaluation.reference import measure_teacher
from search.loop.board import Board
from search.proposals.proxy_correlation import prediction_report
from search.results.export import verify_front
from search.results.inspection import counted
from search.study.budget_clock import cpu_seconds
from search.study.console import console
from search.study.cpu_profile import FILES
from search.study.durations import MINUTE
from search.study.errors import UserError
from search.study.front import front, need_front
from search.study.goal import beyond_teacher, limits_of_goal, measured_for_goal
from spaces.network.messages import number_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from search.engines.engine import Engine
    from search.study.spec import StudySpec


class Searched(NamedTuple):
    """A study that was searched.

    Attributes
    ----------
    search
        The study.
    finished
        Whether the budget is spent; otherwise the user stopped the search, and no file was verified.
    failures
        A message for each member of the front whose file failed verification.
    """

    search: Search
    finished: bool
    failures: list[str]


def command(options: argparse.Namespace) -> int:
    """Search for the Pareto front, then export, verify and print it; return the exit code."""
    (study, spec, context, folder, *_), finished, failures = searched(options)
    if not finished:
        count = len(front(study))
        console.error(f"stopped with {number_of(count, 'member')} on the front; continue with: {options.command_line}")
        return EXIT_STOPPED
    show_front(study, context.spec, members_of(study, spec, folder), options.format)
    if note := prediction_report(study, context.spec):
        console.print(note)
    if not _together(options):
        console.print(context.cpu_profile.words())
    for failure in failures:
        console.error(f"slimfront: {failure}")
    console.print(f"for pictures: slimfront report {study_arguments(options)}")
    best = "goal" if spec.goal else "knee"
    console.print(f"for a file: slimfront export {study_arguments(options)} --pick {best}")
    return 1 if failures else 0


def searched(
    options: argparse.Namespace, follow: Callable[[StudySpec, Path, str | None], object] | None = None
) -> Searched:
    """Search for the Pareto front, then export and verify it.

    Parameters
    ----------
    options
        The words of the user.
    follow
        Called with the study, its folder and its storage as soon as there are trials to show.

    Raises
    ------
    UserError
        If several workers are to load a study that is no function of a file.
    """
    if _together(options) and not isinstance(options.study, str):
        raise UserError(
            "several workers are processes that load the study themselves, so it must be a function of a file: "
            "run('my_study.py:study', workers=...)"
        )
    search = opened_search(options)
    study, spec, context, folder, reference, clock = search
    with Board(study, clock) as board:
        _introduce(search)
        if follow is not None:
            follow(context.spec, folder, options.storage)
        if not (_crew(options, search).work() if _together(options) else search.run(unverified=options.unverified)):
            return Searched(search, finished=False, failures=[])
        board.count()
        trials = need_front(study, spec)
        with context.cpu_profile.charge(FILES):
            clock.reserved = 0.0  # the reserve is for these files
            weights = with_weights(trials, folder)
            failures = [] if options.unverified else verify_front(weights, context, folder, reference, clock)
    return Searched(search, finished=True, failures=failures)


def _introduce(search: Search) -> None:
    """Say what the search begins with: the teacher, what its counts leave out, and the limits."""
    study, context, reference = search.study, search.context, search.reference
    teacher = measure_teacher(study, context)
    console.print(f"teacher: {', '.join(f'{name} {in_digits(value)}' for name, value in teacher.items())}")
    console.print(f"teacher's file: {reference.stat().st_size:,} bytes, {reference}")
    for left_out in counted(context.subject.model, context.subject.example)[1]:
        console.print(left_out)
    _print_limits(context.spec)
    for line in beyond_teacher(context.spec.limits, teacher):
        console.print(line)


def _together(options: argparse.Namespace) -> bool:
    """Whether several workers search."""
    return bool(options.workers > 1 or options.engine == "ray")


def _crew(options: argparse.Namespace, search: Search) -> Crew:
    """Return the workers of a run with several ones."""
    count, budget, run_name = options.workers, search.spec.budget, uuid.uuid4().hex
    clock, started = search.clock, time.monotonic()
    cpu_share = math.inf if budget.cpu_seconds is None else (budget.cpu_seconds - cpu_seconds() + clock.cpu) / count

    def arguments(number: int) -> list[str]:
        """Return the arguments of a worker that starts now: it has the rest of the time of the one that it replaces."""
        words = ["worker", *study_words(options), "--crew", run_name, str(number), str(count)]
        words += ["--device", options.device, "--threads", str(options.threads)]
        if budget.trials is not None:
            words += ["--trials", str(budget.trials)]
        if budget.minutes is not None:
            words += ["--minutes", str(max(budget.minutes - (time.monotonic() - clock.wall) / MINUTE, SHORTEST))]
        if budget.cpu_seconds is not None:
            words += ["--cpu-seconds", str(max(cpu_share - options.threads * (time.monotonic() - started), SHORTEST))]
        words += ["--quiet"] * options.quiet + ["--verbose"] * options.verbose
        return words + ["--unverified"] * options.unverified

    storage = {} if options.storage is None else {STORAGE_VARIABLE: options.storage}  # command lines are public
    return Crew(_engine(options, search), count, arguments, storage, search.study, search.clock)


def _engine(options: argparse.Namespace, search: Search) -> Engine:
    """Return the engine of the options, and say where the workers will run."""
    if options.engine == "ray":
        cluster = OnRay(options.threads, options.gpus_per_worker)
        console.print(cluster.words())
        if options.storage is None:
            console.print(
                "the trials are in the folder of the study, which all machines of the cluster must share; name a "
                "database with --storage otherwise"
            )
        return cluster
    gpus = torch.cuda.device_count() if search.context.subject.device.type == "cuda" else 0
    if gpus and options.workers > gpus:
        console.print(f"{options.workers} workers share {number_of(gpus, 'GPU')}")
    return Processes(gpus)


def _print_limits(spec: StudySpec) -> None:
    """Print the phrases of the goal and the limits relative to the teacher, with their bounds."""
    phrases = {str(limit): f"goal {phrase!r}: " for phrase, limit in limits_of_goal(spec)}
    added = measured_for_goal(spec)
    for limit in spec.limits:
        if str(limit) in phrases or limit.is_relative:
            note = "; measured for this goal" if limit.objective.name in added else ""
            console.print(f"{phrases.get(str(limit), 'limit: ')}{limit.words}{note}")
