"""Where the trials of a study lie: Optuna's storage."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from search.study.definition import define, differences
from search.study.errors import UserError
from search.study.records import DEFINITION, DRAFT
from search.study.seeded_sampler import SeededSampler

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study
    from optuna.storages import BaseStorage

    from search.study.spec import StudySpec

SHOWN = 3  # differences named in full


def open_study(spec: StudySpec, folder: Path, url: str | None, *, create: bool) -> Study:
    """Open the study, or create it.

    Parameters
    ----------
    spec
        What the study is made of, with a sampler and a start (`search.proposals.defaults.resolved`).
    folder
        Where its files lie; the trials too, as `journal.log`, unless `url` names a storage.
    url
        Any storage that Optuna knows, such as `postgresql://...` or `sqlite:///file.db`.
    create
        Whether a study that does not exist yet is created.

    Raises
    ------
    UserError
        If the storage cannot be read, holds no such study or one of another definition, or the folder is another's.
    """
    definition = define(spec)
    try:
        storage = _storage(folder, url, create=create)
        study, changed = _opened(storage, spec, definition, folder, create=create)
        len(study.trials)  # reads all of it
    except UserError:
        raise
    except Exception as error:
        where = url or folder / "journal.log"
        raise UserError(
            f"the storage {where} cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:200]}); if "
            "another process holds it, wait for that; if it is damaged, start anew in another --folder (and --storage)"
        ) from error
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(
            f"the study {spec.name!r} was stored with another definition: {'; '.join(changed[:SHOWN])}{more}; undo the "
            "change, or give the new study another name or --folder"
        )
    return study


def _opened(
    storage: BaseStorage, spec: StudySpec, definition: dict[str, str], folder: Path, *, create: bool
) -> tuple[Study, list[str]]:
    """Return the study, created where that is asked for, and how its stored definition differs."""
    stored = {found.study_name for found in storage.get_all_studies()}
    if spec.name not in stored:
        if not create:
            raise UserError(f"the storage holds no study called {spec.name!r}; start it with: slimfront run")
        return _created(storage, spec, definition, folder), []
    study = optuna.load_study(study_name=spec.name, storage=storage, sampler=_sampler(spec))
    changed = differences(study.user_attrs.get(DEFINITION, definition), definition)
    untried = not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
    if create and changed and untried:
        # an error stopped it before anything was trained, and the new definition may be what mends that
        for name in {spec.name, spec.name + DRAFT} & stored:
            optuna.delete_study(study_name=name, storage=storage)
        return _created(storage, spec, definition, folder), []
    return study, changed


def _created(storage: BaseStorage, spec: StudySpec, definition: dict[str, str], folder: Path) -> Study:
    if any(folder.glob("candidates/*")):
        raise UserError(f"{folder} holds the candidates of another study; name another folder with --folder")
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=[objective.direction for objective in spec.objectives],
        sampler=_sampler(spec),
        load_if_exists=True,  # another worker may have been faster
    )
    study.set_user_attr(DEFINITION, definition)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.name for objective in spec.objectives])
    return study


def _sampler(spec: StudySpec) -> SeededSampler:
    assert spec.sampler is not None, "search.proposals.defaults.resolved comes before"
    return SeededSampler(spec.sampler, spec.seed)


def _storage(folder: Path, url: str | None, *, create: bool) -> BaseStorage:
    if url is None:
        path = folder / "journal.log"
        if not create and not path.exists():
            raise UserError(f"no study in {folder}; start it with: slimfront run")
        if create and path.exists():
            _cut_unfinished(path)
        return JournalStorage(JournalFileBackend(str(path)))
    if url.startswith("journal://"):
        return JournalStorage(JournalFileBackend(url.removeprefix("journal://")))
    return optuna.storages.get_storage(url)


def _cut_unfinished(journal: Path) -> None:
    """Cut off a last record that a power cut or a full disk left half written: the next would be joined to it."""
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)
    finally:
        lock.release()
