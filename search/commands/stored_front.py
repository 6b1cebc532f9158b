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

    from search.study.stored import Stored


def stored(options: argparse.Namespace) -> Stored | None:
    """Return the stored study that the options name, with their runtime; None if it has to be loaded."""
    found = find(options.study, options.set, options.folder, options.storage)
    asked = found and asked_runtime(options, found.outline.runtime)
    if found is None or asked is None:
        return found
    return found._replace(outline=dataclasses.replace(found.outline, runtime=StoredRuntime.of(asked)))


def command(options: argparse.Namespace) -> int | None:
    """Print the teacher and the Pareto front of a study; return the exit code, None if the study has to be loaded."""
    found = stored(options)
    if found is None:
        return None
    show_front(found.study, found.outline, members_of(found.study, found.outline, found.folder), options.format)
    if found.changed:
        console.print(
            f"the file of the study {found.outline.name!r} is not what it was when the study was last run; this is the "
            "stored front"
        )
    return 0
