"""Where a study lies: Optuna's storage for the trials, one folder for the files."""

from __future__ import annotations

import json
import os
import re
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from search.definition import define, differences
from search.errors import UserError
from search.sampling import Seeded

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from search.spec import StudySpec

DEFINITION = "definition"
WORKER = "worker"
DRAFT = "-draft"  # behind the name of a study, that of its draft
INTERRUPTED = "interrupted"
ASKED = "asked_epochs"  # attribute of an enqueued trial: for how long it is to be trained
SHOWN = 3  # differences named in full


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


def open_study(spec: StudySpec, folder: Path, url: str | None, *, create: bool) -> Study:
    """Open the study, or create it.

    Parameters
    ----------
    spec
        Its definition.
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
    now = define(spec)
    try:
        storage = _storage(folder, url, create=create)
        study = _opened(storage, spec, folder, create=create)
        stored = study.user_attrs.get(DEFINITION, now)
        len(study.trials)  # reads all of it
    except UserError:
        raise
    except Exception as error:
        where = url or folder / "journal.log"
        raise UserError(
            f"the storage {where} cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:200]}); if "
            "another process holds it, wait for that; if it is damaged, start anew in another --folder (and --storage)"
        ) from error
    if changed := differences(stored, now):
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(
            f"the study {spec.name!r} was stored with another definition: {'; '.join(changed[:SHOWN])}{more}; undo the "
            "change, or give the new study another name or --folder"
        )
    return study


def _opened(storage: BaseStorage, spec: StudySpec, folder: Path, *, create: bool) -> Study:
    if spec.name not in {found.study_name for found in storage.get_all_studies()}:
        if not create:
            raise UserError(f"the storage holds no study called {spec.name!r}; start it with: slimfront run")
        return _created(storage, spec, folder)
    study = optuna.load_study(study_name=spec.name, storage=storage, sampler=Seeded(spec.sampler, spec.seed))
    now = define(spec)
    untried = not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
    if create and study.user_attrs.get(DEFINITION, now) != now and untried:
        # an error stopped it before anything was trained, and the new definition may be what mends that
        for name in {spec.name, spec.name + DRAFT} & {found.study_name for found in storage.get_all_studies()}:
            optuna.delete_study(study_name=name, storage=storage)
        return _created(storage, spec, folder)
    return study


def _created(storage: BaseStorage, spec: StudySpec, folder: Path) -> Study:
    if any(folder.glob("candidates/*")):
        raise UserError(f"{folder} holds the candidates of another study; name another folder with --folder")
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=[objective.direction for objective in spec.objectives],
        sampler=Seeded(spec.sampler, spec.seed),
        load_if_exists=True,  # another worker may have been faster
    )
    study.set_user_attr(DEFINITION, define(spec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.name for objective in spec.objectives])
    return study


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


def worker() -> str:
    """Name this process, so that another can tell whether it still lives."""
    return f"{socket.gethostname()}:{os.getpid()}"


def accompanied(name: str) -> bool:
    """Whether that worker is another one, which lives as far as this machine can tell."""
    host, _, pid = name.rpartition(":")
    return name != worker() and (host != socket.gethostname() or _alive(int(pid)))


def requeue_abandoned(study: Study) -> int:
    """Give up the trials whose process on this machine is gone, and enqueue their plans again; return how many."""
    lost = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = trial.user_attrs.get(WORKER, ":").rpartition(":")
        if host == socket.gethostname() and not _alive(int(pid)):
            study.tell(trial.number, state=TrialState.FAIL)
            enqueue(study, params_of(trial), trial.user_attrs.get(ASKED))
            lost += 1
    return lost


def fixed(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with, none where a sampler proposed it."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, those too that it was enqueued with and has not drawn yet."""
    return {**fixed(trial), **trial.params}


def enqueue(study: Study, params: dict[str, float], epochs: float | None = None) -> None:
    """Put a plan before what the sampler proposes next, to be trained for so many epochs if any are named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.enqueue_trial(params, user_attrs={"enqueued": True} | ({} if epochs is None else {ASKED: epochs}))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def save_json(path: Path, content: object) -> None:
    """Write JSON so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
