"""The command `completion`."""

from __future__ import annotations

import argparse

import shtab

from objectives.runtimes.names import RUNTIMES
from search.command_line import parser
from search.study.console import results_console

PATHS = {"study": shtab.FILE, "folder": shtab.DIRECTORY, "out": shtab.DIRECTORY}  # by argument


def command(options: argparse.Namespace) -> int:
    """Print a script that completes the command line in a shell; return the exit code."""
    whole = parser()
    for subparsers in _actions(whole):
        if isinstance(subparsers, argparse._SubParsersAction):  # noqa: SLF001 - it has no public name
            for action in (action for each in subparsers.choices.values() for action in _actions(each)):
                if action.dest in PATHS:
                    action.complete = PATHS[action.dest]  # type: ignore[attr-defined]  # read by shtab
                elif action.dest == "runtime":
                    action.choices = tuple(RUNTIMES)  # the parser takes versions of them too
    results_console.file.write(shtab.complete(whole, options.shell))
    return 0


def _actions(one: argparse.ArgumentParser) -> list[argparse.Action]:
    return one._actions  # noqa: SLF001 - argparse has no public way to its arguments
