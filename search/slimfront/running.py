"""Search a study, or open a stored one, from Python."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from search.commands.loading import opened
from search.commands.run import searched
from search.commands.stored_front import stored
from search.study.errors import UserError
from search.study.spec import StudySpec

from .asking import Selection
from .progress import ProgressBar
from .quiet import in_notebook, working
from .result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping


def run(
    study: StudySpec | str,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    cpu_seconds: float | None = None,
    goal: str | None = None,
    folder: str | Path | None = None,
    workers: int = 1,
    settings: Mapping[str, object] | None = None,
    storage: str | None = None,
    sampler: str | None = None,
    runtime: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    threads: int = 1,
    verify: bool = True,
    quiet: bool | None = None,
) -> Result:
    """Search for the Pareto front of a study, or continue a search; export and verify the front, and return it.

    Interrupted (the stop button of a notebook, Ctrl-C), it ends after the trial under way and returns what there is;
    the same call continues.

    Parameters
    ----------
    study
        The study, or a function that returns it, as `file.py:function` or `package.module:function`.
    trials, minutes, cpu_seconds
        The budget: trained candidates in total, wall time and CPU time of this run; by default that of the study.
    goal
        Limits in words, such as "4x smaller, lose at most 1 point".
    folder
        The folder of the study's files; by default `runs/<name of the study>`.
    workers
        Processes that search together. They need a study that is named as a function.
    settings
        Arguments of that function.
    storage, sampler, runtime, seed, device, threads
        As the options of the command line: `slimfront run --help`.
    verify
        Whether the files of the front are exported and verified at the end.
    quiet
        True prints nothing, False prints what the command line prints; by default there is a progress bar alone in a
        notebook, and all messages elsewhere.

    Raises
    ------
    UserError
        If there is something that the user can correct.
    """
    shared = {
        "folder": folder, "storage": storage, "sampler": sampler, "runtime": runtime, "seed": seed, "device": device,
        "threads": threads,
    }  # fmt: skip
    selection = Selection(study, settings or {}, shared)
    bounds = {"trials": trials, "minutes": minutes, "cpu_seconds": cpu_seconds}
    options = selection.of("run", **bounds, goal=goal, workers=workers, unverified=not verify)
    bar = ProgressBar() if quiet is None and in_notebook() else None
    with working(quiet=quiet is True or bar is not None), bar or contextlib.nullcontext():
        found = searched(options, None if bar is None else bar.follow)
    search = found.search
    return Result(selection, search.study, search.spec, search.folder, found.failures)


def load_study(
    study: StudySpec | str | Path,
    *,
    folder: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    storage: str | None = None,
    runtime: str | None = None,
    device: str = "auto",
    threads: int = 1,
) -> Result:
    """Return the result of a study that was searched before, here or by the command line.

    Parameters
    ----------
    study
        The study, the function that returns it, or the folder of its files. Of a function or a folder only the storage
        is read; network and data are loaded when something needs them.
    folder, settings, storage, runtime, device, threads
        As in `run`.

    Raises
    ------
    UserError
        If it is not stored, or was stored with another definition.
    """
    shared = {"folder": folder, "storage": storage, "runtime": runtime, "device": device, "threads": threads}
    selection = Selection(study, settings or {}, shared)
    options = selection.of("front")
    with working(quiet=in_notebook()):
        found = None if isinstance(study, StudySpec) else stored(options)
        if found is not None:
            return Result(selection.in_folder(found.folder), found.study, found.outline, found.folder)
        if not isinstance(study, StudySpec) and Path(study).is_dir():
            raise UserError(
                f"{study} holds no study that can be read without its function; name it as file.py:function"
            )
        stored_study, spec, place = opened(options)
    return Result(selection, stored_study, spec, place)
