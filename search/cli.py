"""The command line `slimfront`: inspect, run, front, report, confirm and export a study."""

from __future__ import annotations

import pkgutil
import shlex
import signal
import sys
import threading
from typing import TYPE_CHECKING

from objectives.runtimes.errors import ExportError
from search.command_line import EXIT_STOPPED, parser
from search.study.budget_clock import PROCESS_START, now
from search.study.console import console
from search.study.errors import LimitsUnmet, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if all went well, 1 if a file failed verification, 2 after an error, 130 if stopped.

    Parameters
    ----------
    arguments
        The arguments without the name of the program; by default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    options.command_line = shlex.join(["slimfront", *words])
    options.start = PROCESS_START if arguments is None else now()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: whatever ends the command, it says how to go on
    try:
        carry_out = pkgutil.resolve_name("search.commands.carrying_out:carry_out")  # late: help is shown at once
        return int(carry_out(options))
    except (UserError, ExportError, ImportError) as error:
        for line in error.details if isinstance(error, LimitsUnmet) else ():
            console.print(line)
        console.print(f"slimfront: {' '.join(str(error).split())}")
        if options.debug:
            raise
        return 2
    except KeyboardInterrupt:
        console.print(f"stopped; all finished work is kept; continue with: {options.command_line}", markup=False)
        return EXIT_STOPPED


def _interrupt(*_: object) -> None:
    """Stop the command.

    Raises
    ------
    KeyboardInterrupt
        Always.
    """
    raise KeyboardInterrupt
