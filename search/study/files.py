"""Where the files of a study lie."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from search.study.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from search.study.spec import StudySpec


def folder_of(spec: StudySpec, folder: str | None) -> Path:
    """Return the folder of the study's files, `runs/<name>` unless one is given.

    Raises
    ------
    UserError
        If the name of the study is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spec.name):
        raise UserError(
            f"a study's name must be of letters, digits, '.', '_' and '-', but got {spec.name!r}; it becomes a folder"
        )
    return Path(folder) if folder else Path("runs") / spec.name


def writable(folder: Path) -> None:
    """Create the folder and check that files can be written there.

    Raises
    ------
    UserError
        If not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder with --folder") from error


def save_json(path: Path, content: object) -> None:
    """Write JSON so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


def state_path(folder: Path, number: int) -> Path:
    """Return where the trained weights of a trial lie."""
    return folder / "candidates" / f"{number}.safetensors"


def save_state(model: nn.Module, path: Path) -> None:
    """Write the network's tensors as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}, path)
