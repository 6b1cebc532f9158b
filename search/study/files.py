"""The folder of a study, and how its files are written and read: whole or not at all, and with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.study.console import console
from search.study.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from search.study.spec import StudySpec

RUNS = "runs"  # the folder of the folders of studies
CHECKSUM = "checksum"  # key of a JSON file: the SHA-256 of all its other content
DIGITS = 12  # hexadecimal digits of a SHA-256 in the name of a file


class Damaged(UserError):
    """A file that is not what was written: it is cut, changed or of another kind."""


def ensure_study_file(location: str) -> None:
    """Check that the file of a study exists, if it is named by a file.

    Raises
    ------
    UserError
        If it does not.
    """
    if location.endswith(".py") and not Path(location).is_file():
        raise UserError(f"no file {location}; give the path of the file with the study, such as studies/digits.py")


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


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file gets its name once it is complete and on the disk.

    So a reader finds the earlier file or the new one, and nothing else, whenever the program or the machine stops.
    """
    with _unfinished(path.parent, path.stem, path.suffix) as unfinished:
        yield unfinished
        _place(unfinished, path)


@contextlib.contextmanager
def _unfinished(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """Yield a temporary path in the folder, with the ending that some writers go by; it is removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{stem}-{secrets.token_hex(4)}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _place(unfinished: Path, path: Path) -> None:
    """Give a finished file its name, once its content is on the disk."""
    sync(unfinished)
    unfinished.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # pragma: no cover - Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, digest: str | None) -> None:
    """Compare a file with the SHA-256 that was recorded when it was written; None: version 0.1 recorded none.

    Raises
    ------
    Damaged
        If they differ.
    OSError
        If the file cannot be read.
    """
    if digest is not None and sha256(path) != digest:
        raise Damaged(f"{path} is damaged: it differs from the checksum that was recorded when it was written")


def save_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with its checksum, whole or not at all."""
    save_text(path, json.dumps({**content, CHECKSUM: _checksum(content)}, indent=1) + "\n")


def load_json(path: Path, kinds: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Return what `save_json` wrote; files of version 0.1 have no checksum and are not compared with it.

    Parameters
    ----------
    path
        The file.
    kinds
        Keys that it must have, each with the type of its value.

    Raises
    ------
    Damaged
        If the file is not JSON, not an object with these keys, or differs from its checksum.
    OSError
        If it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: it is not JSON ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path} is damaged: it must hold a JSON object, but holds {type(content).__name__}")
    written = content.pop(CHECKSUM, None)
    if written is not None and written != _checksum(content):
        raise Damaged(f"{path} is damaged: its content differs from its checksum")
    for name, kind in (kinds or {}).items():
        if not isinstance(found := content.get(name), kind):
            must = f"{name} must be of type {kind.__name__}, but is {type(found).__name__}"
            raise Damaged(f"{path} is another file than expected: {must}")
    return content


def load_or_nothing(path: Path, kinds: Mapping[str, type], consequence: str) -> dict[str, Any]:
    """Return what `load_json` does; nothing if there is no such file, or if a line says that it is damaged.

    Parameters
    ----------
    path, kinds
        As in `load_json`.
    consequence
        What follows if it is damaged, in words.
    """
    try:
        return load_json(path, kinds)
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        console.print(f"{error}; {consequence}")
        return {}


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, whatever the order of its keys."""
    read_back = json.loads(json.dumps(content))  # keys that are numbers become texts
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def save_named_by_content(folder: Path, stem: str, suffix: str, write: Callable[[Path], object]) -> Path:
    """Write a file whose name ends in the beginning of its SHA-256; return its path.

    Parameters
    ----------
    folder, stem, suffix
        Parts of the name, `<stem>-<digits><suffix>`.
    write
        Writes the file to the path that it is called with.
    """
    with _unfinished(folder, stem, suffix) as unfinished:
        write(unfinished)
        path = folder / f"{stem}-{sha256(unfinished)[:DIGITS]}{suffix}"
        _place(unfinished, path)
    return path


def named_by_content(folder: Path, stem: str, suffix: str) -> Path | None:
    """Return a file that `save_named_by_content` wrote and that is as written, None if there is none.

    A file `<stem><suffix>` of version 0.1, whose name says nothing about its content, is returned too.
    """
    for path in sorted(folder.glob(f"{stem}-{'[0-9a-f]' * DIGITS}{suffix}")):
        if path.stem.endswith(sha256(path)[:DIGITS]):
            return path
        console.print(f"{path} is damaged: it differs from the checksum in its name; it is made anew")
    earlier = folder / f"{stem}{suffix}"
    return earlier if earlier.is_file() else None
