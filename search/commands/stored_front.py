"""The command `front` from the storage alone: neither the network nor the data is loaded."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from search.commands.showing import asked_runtime, members_of, show_front
from search.study.console import console
from search.study.outline import StoredRuntime
from search.study.stored import find

if TYPE_CHECKING:
    import argparse


def command(options: argparse.Namespace) -> int | None:
    """Print the teacher and the Pareto front of a study; return the exit code, None if the study has to be loaded."""
    found = find(options.study, options.set, options.folder, options.storage)
    if found is None:
        return None
    outline, asked = found.outline, asked_runtime(options, found.outline.runtime)
    if asked is not None:
        outline = dataclasses.replace(outline, runtime=StoredRuntime.of(asked))
    show_front(found.study, outline, members_of(found.study, outline, found.folder), options.format)
    if found.changed:
        console.print(
            f"the file of the study {outline.name!r} is not what it was when the study was last run; this is the "
            "stored front"
        )
    return 0
