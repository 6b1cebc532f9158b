"""Carry out a command, and report faults of the storage and the machine as errors of one line."""

from __future__ import annotations

import contextlib
import pkgutil
from typing import TYPE_CHECKING

import optuna

from objectives.runtimes.errors import ExportError
from search.study.console import step
from search.study.errors import StorageFault, UserError, machine_fault
from search.study.files import ensure_study_file

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator


def carry_out(options: argparse.Namespace) -> int:
    """Carry out a command; return the exit code."""
    if len(options.acts) == 1:  # else the study may be found in its storage, without its file
        ensure_study_file(str(getattr(options, "study", "")).rpartition(":")[0])  # before torch is loaded
    with faults_in_words(options.command_line):
        answers = (_loaded(act)(options) for act in options.acts)
        return int(next(answer for answer in answers if answer is not None))


@contextlib.contextmanager
def faults_in_words(again: str) -> Iterator[None]:
    """Report faults of the storage and the machine as errors of one line, and nothing of what Optuna logs.

    Parameters
    ----------
    again
        What continues the work that is done in the context, such as a command.

    Raises
    ------
    UserError
        If the storage or the machine fails.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except Exception as error:
        fault = error if isinstance(error, UserError | ExportError) else machine_fault(error)
        if isinstance(fault, StorageFault):
            raise StorageFault(f"{fault}; continue with: {again}") from error
        if fault is None or fault is error:
            raise
        raise fault from error


def _loaded(act: str) -> Callable[[argparse.Namespace], int | None]:
    """Return the function of an act; it may import torch, which takes seconds."""
    with step("loading torch"):
        function: Callable[[argparse.Namespace], int | None] = pkgutil.resolve_name(act)
    return function
