"""Carry out a command, and report faults of the storage and the machine as errors of one line."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

import optuna

from search.study.errors import UserError, machine_fault
from spaces.network.messages import first_line

if TYPE_CHECKING:
    import argparse


def carry_out(options: argparse.Namespace) -> int:
    """Carry out a command; return the exit code.

    Raises
    ------
    UserError
        If the storage or the machine fails.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        answers = (pkgutil.resolve_name(act)(options) for act in options.acts)
        return int(next(answer for answer in answers if answer is not None))
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(f"the storage failed: {first_line(error)}; run the command again") from error
    except (MemoryError, OSError, RuntimeError) as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        raise fault from error
