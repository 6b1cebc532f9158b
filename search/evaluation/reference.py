"""The teacher as the reference of a study: its file, what that says of predicted sizes, its values."""

from __future__ import annotations

import functools
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from objectives import SizeBytes
from objectives.runtimes import ExportError
from search.evaluation.context import Context
from search.evaluation.subject import Subject
from search.study.console import console
from search.study.cpu_profile import MEASURING
from search.study.errors import UserError
from search.study.records import TEACHER
from spaces.network.messages import first_line

if TYPE_CHECKING:
    import torch
    from optuna import Study
    from torch import nn

    from objectives import Objective
    from objectives.runtimes import Runtime
    from search.study.spec import StudySpec


def prepared(spec: StudySpec, device: torch.device, folder: Path) -> tuple[Context, Path]:
    """Return what the trials of a study share, and the teacher's own file.

    The sizes that the study predicts are calibrated on that file, so it is written first.

    Parameters
    ----------
    spec
        The study.
    device
        Where networks are trained and measured.
    folder
        Of the study's files; the teacher's file is exported there once.

    Raises
    ------
    UserError
        If teacher, data and axes do not fit each other.
    ExportError
        If the runtime cannot take the teacher; it is tried before a search starts, not after hours of it.
    """
    subject = Subject(spec, device)
    path = teacher_file(subject, spec.runtime, folder)
    return Context(calibrated(spec, subject, path), subject), path


def teacher_file(subject: Subject, runtime: Runtime, folder: Path) -> Path:
    """Return the teacher's own file, exported once a folder: the reference of every latency.

    Raises
    ------
    ExportError
        If the runtime cannot take the teacher.
    """
    path = folder / f"teacher-{subject.fingerprint}.{runtime.suffix}"
    if not path.exists():
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        subject.export(runtime, unfinished)
        unfinished.replace(path)
    return path


def calibrated(spec: StudySpec, subject: Subject, path: Path) -> StudySpec:
    """Return the study with sizes that are calibrated on the teacher's file.

    Parameters
    ----------
    spec, subject
        The study and its teacher.
    path
        The teacher's file for the study's runtime. A size for another runtime is calibrated on a file that is exported
        here for that; where this fails, the size stays as it is, and that is said.
    """
    calibrated_sizes = {}
    for objective in spec.measured:
        if isinstance(objective, SizeBytes):
            size = functools.partial(
                _bytes, subject, objective.runtime, path if objective.runtime == spec.runtime else None
            )
            try:
                calibrated_sizes[objective.name] = objective.calibrated(subject.finished, size)
            except (ExportError, ImportError) as error:
                console.print(f"{objective.name} is predicted without the teacher's file: {first_line(error)}")
    return spec.with_objectives(calibrated_sizes)


def _bytes(subject: Subject, runtime: Runtime, path: Path | None) -> int:
    if path is not None:
        return path.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "teacher"
        subject.export(runtime, other)
        return other.stat().st_size


def measure_teacher(study: Study, context: Context) -> dict[str, float]:
    """Return the teacher's value of every objective, measured once a study: the point to compare with.

    Raises
    ------
    UserError
        If an objective fails on the teacher, or is not finite.
    """
    if TEACHER not in study.user_attrs:
        with context.cpu_profile.charge(MEASURING):
            values = {
                objective.name: _first_value(objective, context.subject.finished) for objective in context.spec.measured
            }
        study.set_user_attr(TEACHER, values)
    return dict(study.user_attrs[TEACHER])


def _first_value(objective: Objective, finished: nn.Module) -> float:
    """Measure the teacher, where an objective that cannot work shows itself."""
    try:
        value = float(objective(finished))
    except ExportError:
        raise
    except Exception as error:
        raise UserError(f"the objective {objective.name} fails on the teacher: {error!r}; mend it") from error
    if not math.isfinite(value):
        raise UserError(f"every objective must be finite, but {objective.name} of the teacher is {value}; mend it")
    return value
