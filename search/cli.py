"""The command line `slimfront`: inspect, run, front, report, confirm and export a study."""

from __future__ import annotations

import pkgutil
import shlex
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.runtimes.errors import ExportError
from search.command_line import parser
from search.command_parser import EXIT_ERROR, EXIT_STOPPED
from search.study.budget_clock import PROCESS_START, now
from search.study.console import QUIET, USUAL, VERBOSE, console, results_alone
from search.study.errors import LimitsUnmet, UserError
from search.study.passwords import shown, without_passwords

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

UNEXPECTED = "unexpected:"  # begins the message of an error that no part of the program foresees


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if all went well, 1 if a file failed verification, 2 after an error, 130 if stopped.

    Parameters
    ----------
    arguments
        The arguments without the name of the program; by default those of the process. Without any, the help is shown.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words or ["--help"])
    options.command_line = shlex.join(["slimfront", *map(shown, words)])
    options.start = PROCESS_START if arguments is None else now()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: whatever ends the command, it says how to go on
    console.verbosity = QUIET if options.quiet else VERBOSE if options.verbose else USUAL
    try:
        carry_out = pkgutil.resolve_name("search.commands.carrying_out:carry_out")  # late: help is shown at once
        with results_alone():
            return int(carry_out(options))
    except (UserError, ExportError, ImportError) as error:
        for line in error.details if isinstance(error, LimitsUnmet) else ():
            console.error(without_passwords(line, options.storage))
        return _report(str(error), error, options)
    except KeyboardInterrupt:
        console.error(f"stopped; all finished work is kept; continue with: {options.command_line}")
        return EXIT_STOPPED
    except Exception as error:  # noqa: BLE001 - a fault of ours, or of a library; it too is one line
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        message = f"{UNEXPECTED} {type(error).__name__}: {error} ({where}); all finished work is kept"
        return _report(f"{message}; --debug shows more", error, options)


def _report(message: str, error: Exception, options: argparse.Namespace) -> int:
    """Print the message of an error in one line, after its traceback if the user wants it; return the exit code."""
    if options.debug:
        lines = "".join(traceback.format_exception(error)).rstrip()
        console.out(without_passwords(lines, options.storage))
    line = f"slimfront: {' '.join(message.split())}"
    console.error(without_passwords(line, options.storage))
    return EXIT_ERROR


def _interrupt(*_: object) -> None:
    """Stop the command.

    Raises
    ------
    KeyboardInterrupt
        Always.
    """
    raise KeyboardInterrupt
