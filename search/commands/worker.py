"""The command `worker`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from search.command_parser import EXIT_STOPPED
from search.commands.searching import opened_search
from search.study.console import console

if TYPE_CHECKING:
    import argparse


def command(options: argparse.Namespace) -> int:
    """Work on a study until the budget is spent, beside other workers; return the exit code."""
    in_crew = options.crew is not None
    if in_crew:
        threading.Thread(target=_stop_with_the_run, daemon=True).start()
        console.quiet = True  # the run has checked the study, and has said what there is to say
    run_name, number, count = options.crew or ("", 0, 1)
    try:
        search = opened_search(options, int(count), run_name)
    finally:
        console.quiet = False  # an error that only this machine has is said
    console.leads = not in_crew or int(number) == 0
    if not search.run(unverified=not in_crew or options.unverified):
        return EXIT_STOPPED
    if not in_crew:
        console.print("the budget is spent; `slimfront confirm STUDY --seeds 0` verifies the files of the front")
    return 0


def _stop_with_the_run() -> None:
    """Wait until the input ends, which happens when the process of the run ends, and stop."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
