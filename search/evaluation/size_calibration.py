"""Calibrates predicted sizes on the files of the teacher and of three plans, which tell what its axes add to files."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FixedTrial

from objectives import SizeBytes
from objectives.layers import inputs_of_file
from objectives.runtimes import ExportError
from objectives.trees import moved
from search.evaluation.measured_parts import measurements_file
from search.study.budget_clock import cpu_seconds
from search.study.console import console
from search.study.definition import define_value
from search.study.errors import raise_machine_fault
from search.study.files import load_or_nothing, save_json
from spaces import BitWidths
from spaces.network.messages import first_line
from spaces.plan import Removing

if TYPE_CHECKING:
    from torch import nn

    from objectives.runtimes import Runtime
    from search.evaluation.subject import Subject
    from search.study.budget_clock import BudgetClock
    from search.study.spec import StudySpec
    from spaces import Anatomy, Plan, Space
    from spaces.plan import Axis

    WithBytes = tuple[nn.Module, float]  # a finished network, and the bytes of its file

PLAN_SEED = 1_000_003  # of the random plan, the same one in every process, which no study draws (chosen)
LAYOUT = "layout"  # key of the stored parts
TIME_SHARE = 0.1  # of a time budget that the files of the plans may take (chosen)


def calibrated(
    spec: StudySpec, subject: Subject, path: Path, clock: BudgetClock | None = None, export_seconds: float = 0.0
) -> StudySpec:
    """Return the study with its sizes calibrated on the files of the teacher and of a few plans.

    What is read off them is kept with the measurements of the machine, so that its runs and workers predict the same.

    Parameters
    ----------
    spec, subject
        The study and its teacher.
    path
        The teacher's file for the study's runtime. A size for another runtime is calibrated on a temporary file of
        that runtime; if its export fails, the size is not calibrated, and a message says so.
    clock
        The clock of the run. In a short time the teacher's file alone is used, and a message says so.
    export_seconds
        CPU seconds of the export of the teacher's file; 0 if it was there already.
    """
    seconds = math.inf if clock is None else clock.allowed(TIME_SHARE)
    found = {}
    for objective in spec.measured:
        if isinstance(objective, SizeBytes):
            whole = path if objective.runtime == spec.runtime else None
            try:
                found[objective.name] = _once(objective, spec.space, subject, whole, seconds, export_seconds)
            except (ExportError, ImportError) as error:
                console.print(
                    f"{objective.name} is not calibrated on the teacher's file, which cannot be exported: "
                    f"{first_line(error)}"
                )
    return spec.with_objectives(found)


def _once(
    size: SizeBytes, space: Space, subject: Subject, whole: Path | None, seconds: float, export_seconds: float
) -> SizeBytes:
    """Return the size with the layout that is kept for this machine; measure and keep it where there is none."""
    layout, study = size.runtime.layout, (subject.fingerprint, define_value(size), define_value(space))
    path = measurements_file("sizes-{}.json", layout, study)
    kept = load_or_nothing(path, {LAYOUT: dict}, "sizes are calibrated anew").get(LAYOUT)
    if kept is None:
        teacher, plans = _files(size.runtime, space, subject, whole, seconds, export_seconds)
        if plans is None:
            console.print(
                f"{size.name} is calibrated on the teacher's file alone, since the files of a few plans would take too "
                "much of the time"
            )
            return size.calibrated(teacher)  # not kept, as a longer run measures more
        found = size.calibrated(teacher, *plans)
        kept = {name: value for name, value in asdict(found.layout).items() if value != getattr(layout, name)}
        save_json(path, {LAYOUT: kept})
    return replace(size, read_off=replace(layout, **kept) if kept else None)


def _files(
    runtime: Runtime, space: Space, subject: Subject, whole: Path | None, seconds: float, export_seconds: float
) -> tuple[WithBytes, list[WithBytes] | None]:
    """Return the finished teacher and those of the plans that can be exported, each with the bytes of its file.

    The plans are None if their files would take more CPU seconds than they may, by the last file's time.
    """
    files = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{runtime.suffix}"
        if whole is None:
            subject.export(runtime, path)
        teacher = subject.finished, float((whole or path).stat().st_size)
        plans, until = sample_plans(space, subject.anatomy), cpu_seconds() + seconds
        for number, plan in enumerate(plans):
            started = cpu_seconds()
            if started + (len(plans) - number) * export_seconds > until:
                return teacher, None
            try:
                finished = subject.finish(subject.build_roughly(plan).eval()).cpu()
                runtime.export(finished, inputs_of_file(finished, moved(subject.example, "cpu")), path)
            except Exception as error:  # noqa: BLE001 - of an axis or a runtime; later tries and trials say what fails
                raise_machine_fault(error)
                continue
            files.append((finished, float(path.stat().st_size)))
            export_seconds = cpu_seconds() - started
    return teacher, files


def sample_plans(space: Space, anatomy: Anatomy) -> tuple[Plan, ...]:
    """Return the plans whose files are compared with the teacher's: without any of them, causes are mistaken.

    - All layers at their narrowest precision, and nothing else: what rounding adds.
    - The plan that compresses most with all layers in place: what is the same however small a network is, and factors.
    - A random plan: layers of floats between rounded ones.
    """
    rounding = tuple(float(isinstance(axis, BitWidths)) for axis in space.steps)
    strongest = tuple(float(not _removes(axis, anatomy)) for axis in space.steps)
    params = [space.uniform(anatomy, strengths) for strengths in (rounding, strongest) if any(strengths)]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(PLAN_SEED))  # in memory
    plans = [space.suggest(trial, anatomy) for trial in (*map(FixedTrial, params), study.ask())]
    return tuple(dict.fromkeys(plans))  # they are equal where only one axis acts


def _removes(axis: Axis, anatomy: Anatomy) -> bool:
    """Return whether the axis removes whole layers; without them nothing could be learned about them."""
    step = axis.suggest(FixedTrial(axis.uniform(anatomy, 1.0)), anatomy)
    return isinstance(step, Removing) and bool(step.removed)
