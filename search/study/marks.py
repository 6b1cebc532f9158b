"""The mark of the folders that we write: only what a mark lists, and is as it was written, is deleted or replaced."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

from search.study.errors import UserError
from search.study.files import Damaged, load_json, save_json, sha256, sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MARK = "slimfront.json"  # the file that marks a folder of ours
RUN, REPORT, EXPORT = "run", "report", "export"  # the commands that write folders
NOBODY = "unfinished"  # in place of a command, as long as a folder is not finished
LEFT_SECONDS = 86_400.0  # age from which an unfinished folder belongs to a process that is gone (chosen)
WRITTEN_BY, LISTED = "written_by", "files"  # keys of a mark: the command, and for each file its possible SHA-256
REPLACED = "replaced"  # in the name of a folder that is being replaced


class Mark(NamedTuple):
    """The mark of a folder.

    Attributes
    ----------
    writer
        The command that wrote the folder.
    files
        For each of its files the SHA-256 that it may have: two while it is being replaced.
    """

    writer: str
    files: dict[str, list[str]]

    def lists(self, path: Path) -> bool:
        """Whether a file is one that we wrote, unchanged."""
        return path.is_file() and not path.is_symlink() and sha256(path) in self.files.get(path.name, ())


def mark_of(folder: Path) -> Mark | None:
    """Return the mark of a folder, None if it has none that can be read."""
    try:
        content = load_json(folder / MARK)
        return Mark(str(content[WRITTEN_BY]), {str(name): list(digests) for name, digests in content[LISTED].items()})
    except (OSError, Damaged, KeyError, TypeError, AttributeError):
        return None


def set_mark(folder: Path, writer: str, files: dict[str, list[str]] | None = None) -> None:
    """Mark a folder as ours."""
    save_json(folder / MARK, {WRITTEN_BY: writer, LISTED: files or {}})


def digests_of(folder: Path) -> dict[str, list[str]]:
    """Return the SHA-256 of every file in a folder, as a mark lists them."""
    return {path.name: [sha256(path)] for path in sorted(folder.iterdir()) if path.name != MARK}


def foreign(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return what a folder holds under these names that we did not write, or that was changed since."""
    mark = mark_of(folder)
    there = (path for name in sorted(names) if (path := folder / name).exists() or path.is_symlink())
    return [path for path in there if mark is None or not (path.name == MARK or mark.lists(path))]


@contextlib.contextmanager
def unfinished_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder, which is removed at the end unless it was renamed.

    Also removed are those of the same name that processes left when they were killed, once they are a day old.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for path in parent.glob(f".{name}-{'[0-9a-f]' * 8}"):
        mark = mark_of(path)
        if mark is not None and mark.writer == NOBODY and time.time() - path.stat().st_mtime > LEFT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
    folder = parent / f".{name}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        set_mark(folder, NOBODY)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_files(unfinished: Path, folder: Path, writer: str) -> None:
    """Move all files of an unfinished folder to a folder; delete those that this writer put there before.

    Raises
    ------
    UserError
        If that would overwrite what we did not write.
    """
    new = digests_of(unfinished)
    ensure_free(folder, new, writer)
    old = mark_of(folder) or Mark(writer, {})
    both = {name: [*old.files.get(name, []), *new.get(name, [])] for name in {*old.files, *new}}
    set_mark(folder, writer, both)  # whenever the program ends from here on, all of these files are known as ours
    for name in old.files.keys() - new.keys():
        if old.lists(folder / name):
            (folder / name).unlink()
    for name in new:
        sync(unfinished / name)
        (unfinished / name).replace(folder / name)
    sync(folder)
    set_mark(folder, writer, new)


def ensure_free(folder: Path, names: Iterable[str], writer: str) -> None:
    """Check that writing these files overwrites nothing that we did not write.

    Raises
    ------
    UserError
        If it would.
    """
    mark = mark_of(folder)
    if mark is not None and mark.writer != writer:
        raise UserError(f"{folder} was written by slimfront {mark.writer}; name another folder with --out")
    if others := foreign(folder, (*names, MARK)):
        raise UserError(
            f"{others[0]} is not as slimfront {writer} wrote it, or is a file of yours or of an earlier version; move "
            "it away, or name another folder with --out"
        )


def replace_folder(unfinished: Path, folder: Path) -> None:
    """Give a finished folder its name; of the folder that had it, only the files that its mark lists are deleted."""
    for path in unfinished.iterdir():
        sync(path)
    sync(unfinished)
    retired = folder.parent / f".{folder.name}-{REPLACED}"
    mark = mark_of(folder)
    if folder.exists():
        folder.rename(retired)
    unfinished.rename(folder)
    sync(folder.parent)
    if retired.exists():
        _remove_listed(retired, mark)


def recover(folder: Path) -> None:
    """Undo a replacement that ended between its two renames, and finish one that ended after them."""
    retired = folder.parent / f".{folder.name}-{REPLACED}"
    if mark_of(retired) is None:
        return
    if folder.exists():
        _remove_listed(retired, mark_of(retired))
    else:
        retired.rename(folder)


def _remove_listed(folder: Path, mark: Mark | None) -> None:
    """Remove the files that a mark lists, the mark, and the folder if nothing else is in it."""
    for path in sorted(folder.iterdir()):
        if mark and mark.lists(path):
            path.unlink()
    if mark and [path.name for path in folder.iterdir()] == [MARK]:
        (folder / MARK).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
