"""The teacher as the reference of a study: its file and its values."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import TYPE_CHECKING

from objectives.objective import Foreseeable, Referenced
from objectives.runtimes import ExportError
from objectives.trees import at, moved
from search.evaluation.comparison import COMPARED, compared
from search.evaluation.context import Context
from search.evaluation.first_checks import check_split
from search.evaluation.label_checks import check_all_labels
from search.evaluation.size_calibration import calibrated
from search.evaluation.subject import Subject
from search.study.budget_clock import cpu_seconds
from search.study.console import step
from search.study.cpu_profile import MEASURING
from search.study.errors import UserError
from search.study.files import named_by_content, save_named_by_content
from search.study.records import TEACHER

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from optuna import Study
    from torch import nn

    from objectives import Data, Limit, Objective
    from objectives.runtimes import Runtime
    from objectives.trees import Tree
    from search.study.budget_clock import BudgetClock
    from search.study.spec import StudySpec

EXACT_DB = 60.0  # signal-to-noise ratio of rounding to 32-bit floats, at least; more is never asked for (chosen)


def prepared(
    spec: StudySpec, device: torch.device, folder: Path, clock: BudgetClock | None = None
) -> tuple[Context, Path]:
    """Return the context of a study and the path of the teacher's file, after all that can be checked without training.

    The predicted sizes are calibrated on that file and those of a few plans, so it is written first.

    Parameters
    ----------
    spec
        The study.
    device
        Device on which networks are trained and measured.
    folder
        Folder of the study's files; the teacher's file is exported there once.
    clock
        The clock of the run, if it has one: in a short time the sizes are calibrated on the teacher's file alone.

    Raises
    ------
    UserError
        If teacher, data and axes do not fit together.
    ExportError
        If the runtime does not support the teacher; the export is tried first, and not after hours of search.
    """
    with step("reading the network"):
        subject = Subject(spec, device)
    with step(f"exporting the teacher to {spec.runtime.name}"):
        started = cpu_seconds()
        path = teacher_file(subject, spec.runtime, folder)
        export_seconds = cpu_seconds() - started
    with step("calibrating the predicted sizes"):
        spec = calibrated(spec, subject, path, clock, export_seconds)
    with step("checking the data and a training step"):
        context = Context(spec, subject)
        classes, ignored = context.classes, context.ignored_label
        check_split("test", spec.splits.test, spec.splits.train, classes, ignored, context.accepts)
    return context, path


def teacher_file(subject: Subject, runtime: Runtime, folder: Path) -> Path:
    """Return the teacher's file, exported once per folder; every latency is relative to it.

    Raises
    ------
    ExportError
        If the runtime does not support the teacher, or its file does not answer as it does.
    """
    stem, suffix = f"teacher-{subject.fingerprint}", f".{runtime.suffix}"
    return named_by_content(folder, stem, suffix) or save_named_by_content(
        folder, stem, suffix, functools.partial(_checked_export, subject, runtime)
    )


def _checked_export(subject: Subject, runtime: Runtime, path: Path) -> None:
    """Write the teacher's file, and compare its answers to a few inputs with those of the network.

    Raises
    ------
    ExportError
        If they differ; those of all candidates would, and that would be found after the search.
    """

    def execute(taken: Tree) -> Tree:
        return runtime.load(path)(taken)

    model, inputs = copy.deepcopy(subject.finished).cpu(), moved(subject.example, "cpu")
    runtime.export(model, inputs, path)  # changes nothing of it
    found = compared(model, at(inputs, slice(COMPARED)), execute)
    if found is None:
        return
    bound = min(found["allowed_sqnr_db"], EXACT_DB)
    if not found["sqnr_db"] >= bound:
        raise ExportError(
            f"the file of the teacher must answer as the network does, but {runtime.name} computes a signal-to-noise "
            f"ratio of {found['sqnr_db']:.1f} dB, of at least {bound:.1f}, so would it for all candidates; use another "
            "--runtime, and please report the network"
        )


def measure_teacher(study: Study, context: Context) -> dict[str, float]:
    """Return the teacher's value of every objective, measured once per study.

    Raises
    ------
    UserError
        If an objective fails on the teacher, or is not finite.
    """
    if TEACHER not in study.user_attrs:
        with context.cpu_profile.charge(MEASURING), step("measuring the teacher"):
            values = {
                objective.name: _first_value(objective, context.subject.finished, context.spec.splits.validation)
                for objective in context.spec.measured
            }
        study.set_user_attr(TEACHER, values)
    return dict(study.user_attrs[TEACHER])


def bounded(study: Study, context: Context) -> Context:
    """Return the context with the teacher's values in all limits that are relative to the teacher.

    Metrics, and costs that follow from shapes, are those stored in the study, so that every run and every worker has
    the same bounds. A cost that is measured, such as latency, differs between machines and moments; a limit on it takes
    the teacher's value as measured in this process, which is also what the costs of candidates are measured against.

    Raises
    ------
    UserError
        If an objective fails on the teacher or is not finite, or a limit is a share of a value that is not positive.
    """
    stored = TEACHER in study.user_attrs
    values = measure_teacher(study, context)
    found = copy.copy(context)
    with context.cpu_profile.charge(MEASURING):
        limits = tuple(_against_teacher(limit, values, context, stored=stored) for limit in context.spec.limits)
    found.spec = dataclasses.replace(context.spec, limits=limits)
    return found


def _against_teacher(limit: Limit, values: dict[str, float], context: Context, *, stored: bool) -> Limit:
    """Return the limit with the teacher's value; `stored` tells whether another process measured these values."""
    objective = limit.objective
    if not limit.is_relative:
        return limit
    if objective.is_cost and isinstance(objective, Referenced):
        value = objective.of_reference()
    elif objective.is_cost and stored and not isinstance(objective, Foreseeable):
        value = _first_value(objective, context.subject.finished, context.spec.splits.validation)
    else:
        value = values[objective.name]
    try:
        return limit.against(value)
    except ValueError as error:
        raise UserError(str(error)) from error


def _first_value(objective: Objective, finished: nn.Module, validation: Data) -> float:
    """Measure an objective on the teacher, to find out whether the objective works."""
    try:
        value = float(objective(finished))
    except ExportError:
        raise
    except Exception as error:
        raise UserError(f"the objective {objective.name} fails on the teacher: {error!r}; fix the objective") from error
    if not math.isfinite(value):
        check_all_labels("validation", validation)
        raise UserError(
            f"every objective must be finite, but {objective.name} of the teacher is {value}; fix the objective"
        )
    return value
