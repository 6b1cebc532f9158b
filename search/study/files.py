"""The folder of a study, and how its files are written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from search.study.errors import UserError

if TYPE_CHECKING:
    from search.study.spec import StudySpec

RUNS = "runs"  # the folder of the folders of studies


def folder_of(spec: StudySpec, folder: str | None) -> Path:
    """Return the folder of the study's files: the given one, or `runs/<name of the study>`.

    Raises
    ------
    UserError
        If the name of the study cannot be the name of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spec.name):
        raise UserError(
            "a study's name must start with a letter or digit and consist of letters, digits, '.', '_' and '-', but "
            f"got {spec.name!r}; it becomes the name of a folder"
        )
    return Path(folder) if folder else Path(RUNS) / spec.name


def ensure_writable(folder: Path) -> None:
    """Create the folder and check that files can be written to it.

    Raises
    ------
    UserError
        If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder with --folder") from error


def save_json(path: Path, content: object) -> None:
    """Write JSON to a temporary file and rename it, so that no reader sees a partly written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
