"""Find and read a stored study without the file that defines it: neither its network nor its data is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna

from search.study.errors import UserError
from search.study.files import RUNS, Damaged, load_json, save_json
from search.study.journal import JOURNAL, is_journal, storage_at, unusable
from search.study.marks import MARK, RUN, mark_of, set_mark
from search.study.outline import stored_outline
from search.study.passwords import shown

if TYPE_CHECKING:
    from optuna import Study

    from search.study.outline import StoredStudy

STARTED_WITH = "study.json"  # in the folder of a study: the words that name it on the command line


class Stored(NamedTuple):
    """A study in its storage.

    Attributes
    ----------
    study, outline
        The study, and what its tables need.
    folder
        The folder of its files.
    changed
        Whether the file that defines it is not what it was when the study was last run.
    """

    study: Study
    outline: StoredStudy
    folder: Path
    changed: bool


def remember(folder: Path, name: str, target: str, settings: list[str]) -> None:
    """Write down with which words a study was run, so that the same words find it again.

    Parameters
    ----------
    folder, name
        The study's folder and its name in the storage.
    target, settings
        What follows the command: the function, and the values of `--set`. An empty target stands for a study that is
        no function of a file; what was written before is kept then.
    """
    if not target and _words(folder / STARTED_WITH).get("name") == name:
        return
    words = {"name": name, "study": target, "settings": _without_passwords(settings), "sha256": _digest(target)}
    save_json(folder / STARTED_WITH, words)


def started_with(folder: Path) -> tuple[str, list[str]]:
    """Return the words that `remember` wrote: the function and the settings.

    Raises
    ------
    UserError
        If the study of the folder is no function of a file.
    """
    words = _words(folder / STARTED_WITH)
    if not words.get("study"):
        raise UserError(f"the study in {folder} was not run from a file; name its StudySpec: load_study(spec)")
    return words["study"], words["settings"]


def claim(folder: Path) -> None:
    """Mark the folder of a study as ours, before anything is written to it.

    Raises
    ------
    UserError
        If it is the folder of an export or a report, or holds a file of someone else under a name of ours.
    """
    marked, mark = (folder / MARK).exists(), mark_of(folder)
    if mark is not None and mark.writer != RUN:
        raise UserError(f"{folder} was written by slimfront {mark.writer}; name another folder with --folder")
    if mark is not None:
        return
    ours = {STARTED_WITH: bool(_words(folder / STARTED_WITH)), JOURNAL: is_journal(folder / JOURNAL)}
    others = [folder / name for name, is_ours in ours.items() if (folder / name).exists() and not is_ours]
    if (others or marked) and mark_of(folder) is None:  # else another worker has just claimed the folder
        raise UserError(
            f"{[*others, folder / MARK][0]} was not written by slimfront, which needs a file of that name; move it "
            "away, or name another folder with --folder"
        )
    set_mark(folder, RUN)


def find(target: str, settings: list[str], folder: str | None, url: str | None) -> Stored | None:
    """Return the study that was last run with these words; None if there is none, or an earlier version stored it.

    Parameters
    ----------
    target, settings
        What follows the command: the function, and the values of `--set`; or the folder of a study in place of both.
    folder
        The folder of the study, None to look at all folders in `runs/`.
    url
        The URL of the storage, None for the journal in the folder.

    Raises
    ------
    UserError
        If the storage cannot be read.
    """
    given = Path(target) if Path(target).is_dir() else folder and Path(folder)
    paths = [given / STARTED_WITH] if given else sorted(Path(RUNS).glob(f"*/{STARTED_WITH}"))
    named = [(path, words) for path in paths if path.exists() and (words := _words(path))]
    wanted = target, _without_passwords(settings)
    fitting = [
        (path, words) for path, words in named if given == Path(target) or (words["study"], words["settings"]) == wanted
    ]
    if not fitting and given == Path(target) and any(path.exists() for path in paths):
        raise UserError(f"{paths[0]} is damaged; name the study by its file, such as my_study.py:study")
    if not fitting:
        return None
    path, words = max(fitting, key=lambda item: item[0].stat().st_mtime)
    try:
        storage = storage_at(path.parent, url, create=False)
        if words["name"] not in {summary.study_name for summary in storage.get_all_studies()}:
            return None
        study = optuna.load_study(study_name=words["name"], storage=storage)
        outline = stored_outline(study)
    except UserError:
        raise
    except Exception as error:
        raise unusable(error, path.parent, url) from error
    digest = _digest(words["study"])  # empty where the file is not found from the present folder
    changed = bool(digest) and words["sha256"] != digest
    return None if outline is None else Stored(study, outline, path.parent, changed)


def _without_passwords(settings: list[str]) -> list[str]:
    """Return the settings in order, as they are written down."""
    return sorted(map(shown, settings))


def _words(path: Path) -> dict[str, Any]:
    """Return what `remember` wrote; nothing if the file is damaged."""
    try:
        return load_json(path, {"name": str, "study": str, "settings": list, "sha256": str})
    except (OSError, Damaged):
        return {}


def _digest(target: str) -> str:
    """Return the SHA-256 of the file that a study is defined in, empty for a module."""
    path = Path(target.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
