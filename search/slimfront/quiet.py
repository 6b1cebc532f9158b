"""What holds while slimfront works in a program or a notebook of the user's: errors of one line, and no noise."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import optuna
import torch

from objectives.runtimes import ExportError
from search.commands.carrying_out import faults_in_words
from search.study.console import console
from search.study.errors import LimitsUnmet, UserError

from .asking import AGAIN, in_python

if TYPE_CHECKING:
    from collections.abc import Iterator


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return hasattr(shell, "kernel")


@contextlib.contextmanager
def working(*, quiet: bool) -> Iterator[None]:
    """Report mistakes as `UserError`, and keep Optuna's logs, and if wanted our messages, from the user.

    Afterwards torch has as many threads, and Optuna logs as much, as before.

    Parameters
    ----------
    quiet
        Whether our own messages are left out.

    Raises
    ------
    UserError
        If the user can correct what went wrong; its message is one line.
    """
    threads, level, silent = torch.get_num_threads(), optuna.logging.get_verbosity(), console.quiet
    console.quiet = quiet
    try:
        with faults_in_words(AGAIN):
            yield
    except UserError as error:
        error.args = (in_python(str(error)),)
        for line in error.details if isinstance(error, LimitsUnmet) else ():
            error.add_note(line)
        raise
    except (ExportError, ImportError) as error:
        raise UserError(in_python(" ".join(str(error).split()))) from error
    finally:
        console.quiet = silent
        optuna.logging.set_verbosity(level)
        torch.set_num_threads(threads)
