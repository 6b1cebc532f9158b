"""The command `front` for a study that has to be loaded, because another version stored it or it was moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.commands.loading import opened
from search.commands.showing import members_of, show_front

if TYPE_CHECKING:
    import argparse


def command(options: argparse.Namespace) -> int:
    """Print the teacher and the Pareto front of a study; return the exit code."""
    study, spec, folder = opened(options)
    show_front(study, spec, members_of(study, spec, folder), options.format)
    return 0
