"""Load the study that the words of a command describe."""

from __future__ import annotations

import dataclasses
import pkgutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from search.command_line import SAMPLERS
from search.commands.showing import asked_runtime
from search.proposals.defaults import resolved
from search.results.confirm import weights_of
from search.results.confirmed_elsewhere import bring
from search.study import machine
from search.study.console import step
from search.study.errors import UserError
from search.study.files import folder_of
from search.study.goal import with_stored_goal
from search.study.loader import load
from search.study.spec import Budget, StudySpec
from search.study.storage import open_study
from search.study.stored import STARTED_WITH, started_with

if TYPE_CHECKING:
    import argparse

    from optuna import Study
    from optuna.trial import FrozenTrial


def loaded(options: argparse.Namespace) -> tuple[StudySpec, Path]:
    """Return the study that the options describe, and the folder of its files; prepare torch."""
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()  # a study may train its teacher
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # from fvcore; users cannot avoid it
    warnings.filterwarnings("ignore", "LSTM with projections")  # of its speed
    warnings.filterwarnings("ignore", "RNN module weights")  # from cuDNN, of weights that axes may replace one by one
    _name_by_function(options)
    with step("loading the study"):
        spec = _spec_of(options)
    return spec, folder_of(spec, options.folder)


def opened(options: argparse.Namespace) -> tuple[Study, StudySpec, Path]:
    """Open a stored study; return it, its specification with its goal and on the runtime of the options, its folder."""
    spec, folder = loaded(options)
    study = open_study(spec, folder, options.storage, create=False)
    bring(study, folder)
    return study, on_runtime(options, with_stored_goal(study, spec)), folder


def with_weights(members: list[FrozenTrial], folder: Path) -> list[tuple[FrozenTrial, Path]]:
    """Return the members, each with the path of the weights to export."""
    return [(trial, weights_of(folder, trial)) for trial in members]


def on_runtime(options: argparse.Namespace, spec: StudySpec) -> StudySpec:
    """Return the study with the runtime that the options name."""
    asked = asked_runtime(options, spec.runtime)
    return spec if asked is None else dataclasses.replace(spec, runtime=asked)


def _name_by_function(options: argparse.Namespace) -> None:
    """Put the function and the settings of a study in the place of the folder by which it is named."""
    if not isinstance(options.study, str) or not (Path(options.study) / STARTED_WITH).is_file():
        return
    folder = options.study
    options.study, settings = started_with(Path(folder))
    options.set, options.folder = [*settings, *options.set], options.folder or folder


def _spec_of(options: argparse.Namespace) -> StudySpec:
    """Load the study and apply the options that change it, except for the runtime of a study that is stored already."""
    spec = options.study if isinstance(options.study, StudySpec) else load(options.study, options.set)
    bounds = {name: getattr(options, name, None) for name in ("trials", "minutes", "cpu_seconds")}
    try:
        budget = spec.budget if all(value is None for value in bounds.values()) else Budget(**bounds)
    except ValueError as error:
        raise UserError(str(error)) from error
    sampler = pkgutil.resolve_name(SAMPLERS[options.sampler]) if options.sampler else spec.sampler
    seed = spec.seed if options.seed is None else options.seed
    spec = dataclasses.replace(spec, budget=budget, sampler=sampler, seed=seed)
    asked = on_runtime(options, spec)  # a new goal is about the files that are asked for
    goal = getattr(options, "goal", None)
    return resolved(dataclasses.replace(asked, goal=goal) if goal else spec)
