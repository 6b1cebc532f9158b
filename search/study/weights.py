"""The files of trained weights, in the folder of a study and in a store that several machines share."""

from __future__ import annotations

import contextlib
import functools
import io
import pkgutil
import re
import shutil
import urllib.parse
import urllib.request
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import safetensors.torch
from optuna.exceptions import ExperimentalWarning
from safetensors import SafetensorError

from search.study.errors import MachineFault, UserError
from search.study.files import Damaged, check_digest, load_or_nothing, sha256, whole
from search.study.records import ARTIFACTS, STORE, WEIGHTS
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.trial import FrozenTrial
    from torch import Tensor, nn

CANDIDATES, CONFIRMED = "candidates", "confirmed"  # folders in that of a study: weights of the search and of `confirm`
CONFIRMATION = re.compile(r"(\d{1,9})-seed(\d{1,9})")  # what files of `confirm` are named by: trial and seed
CHECKPOINTS = "checkpoints"  # the same: of trainings under way
# Optuna's backends, which import the libraries of clouds; so they are named, and imported where they are used
ON_DISK = "optuna.artifacts:FileSystemArtifactStore"
IN_CLOUDS = {"s3": "optuna.artifacts:Boto3ArtifactStore", "gs": "optuna.artifacts:GCSArtifactStore"}


def state_path(folder: Path, number: int) -> Path:
    """Return the path of the trained weights of a trial."""
    return folder / CANDIDATES / f"{number}.safetensors"


def save_state(model: nn.Module, path: Path) -> str:
    """Write the tensors of a network to a safetensors file, whole or not at all; return its SHA-256."""
    with whole(path) as unfinished:
        unfinished.touch()  # with the permissions of all files; safetensors would keep it from others
        safetensors.torch.save_file(writable(model.state_dict()), unfinished)
        return sha256(unfinished)


def writable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: on the CPU, each with memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def load_state(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file.

    Parameters
    ----------
    path
        The file.
    digest
        The SHA-256 that was recorded when it was written; None if there is no record, as in version 0.1.

    Raises
    ------
    Damaged
        If the file is not what was written.
    OSError
        If it cannot be read.
    """
    check_digest(path, digest)
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged: it is no safetensors file ({first_line(error)})") from error


def restore(model: nn.Module, path: Path, digest: str | None = None) -> None:
    """Load the weights in a file into a network, in place; the parameters are as in `load_state`.

    Raises
    ------
    Damaged
        If the file is not what was written, or holds the weights of another network.
    """
    state = load_state(path, digest)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise Damaged(f"{path} holds the weights of another network: {first_line(error)}") from error


@dataclass(frozen=True)
class Store:
    """A store that several machines share, where each file of weights is under its SHA-256: a backend of Optuna.

    Attributes
    ----------
    url
        `file:///folder`, `s3://bucket/prefix` or `gs://bucket/prefix`.
    """

    url: str

    def check(self) -> None:
        """Write, read and remove a small file, so that a mistake shows before anything is trained.

        Raises
        ------
        UserError
            If that fails.
        """
        name, content = f"check-{uuid.uuid4().hex}", b"slimfront"
        try:
            backend = _backend(self.url)
            backend.write(name, io.BytesIO(content))
            with backend.open_reader(name) as reader:
                same = reader.read() == content
            backend.remove(name)
        except (UserError, ImportError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"the store {self.url} cannot be used ({reason}); give another one with --artifacts"
            ) from error
        if not same:
            raise UserError(
                f"the store {self.url} returns other bytes than were written; name another with --artifacts"
            )

    def upload(self, path: Path, digest: str) -> None:
        """Copy a file of weights to the store.

        Raises
        ------
        MachineFault
            If the store does not take it; no plan is to blame.
        """
        try:
            with path.open("rb") as file:
                _backend(self.url).write(_name(digest), file)
        except Exception as error:
            raise MachineFault(
                f"the store {self.url} does not take {path} ({type(error).__name__}: {first_line(error)}); all "
                "finished work is kept; run the command again once it does"
            ) from error

    def download(self, digest: str, path: Path) -> None:
        """Copy a file of weights from the store.

        Raises
        ------
        Damaged
            If the store does not have it, or has something else.
        """
        try:
            with whole(path) as unfinished:
                with _backend(self.url).open_reader(_name(digest)) as reader, unfinished.open("wb") as file:
                    shutil.copyfileobj(reader, file)
                check_digest(unfinished, digest)
        except Exception as error:
            raise Damaged(
                f"{path.name} cannot be had from the store {self.url}: {type(error).__name__}: {first_line(error)}"
            ) from error

    def remove(self, digest: str) -> None:
        """Remove a file of weights, if it is there and the store allows that."""
        with contextlib.suppress(Exception):  # it stays, and nothing refers to it
            _backend(self.url).remove(_name(digest))


def store_of(study: Study) -> Store | None:
    """Return the store to which the weights of a study are uploaded, None if they stay where they are."""
    url = study.user_attrs.get(ARTIFACTS)
    return Store(url) if url else None


def store_of_trial(trial: FrozenTrial) -> tuple[Store | None, str]:
    """Return the store that has a copy of the weights of a trial, None if there is none, and their SHA-256."""
    return _store_in(trial.user_attrs)


def _store_in(record: Mapping[str, object]) -> tuple[Store | None, str]:
    url = record.get(STORE)
    return (Store(str(url)) if url else None), str(record.get(WEIGHTS, ""))


def _store_of_file(trial: FrozenTrial, path: Path) -> tuple[Store | None, str]:
    """Return the same for a file of weights: of the search, or of `confirm`, whose record is beside it."""
    if path.parent.name == CONFIRMED:
        return _store_in(load_or_nothing(path.with_suffix(".json"), {}, "its weights are not looked for"))
    return store_of_trial(trial)


def are_available(trial: FrozenTrial, path: Path) -> bool:
    """Return whether weights of a trial are here, or can be had from a store."""
    return path.exists() or _store_of_file(trial, path)[0] is not None


def fetch(trial: FrozenTrial, path: Path) -> None:
    """Download weights of a trial if they are not here and a store has them.

    Raises
    ------
    Damaged
        If the store does not give them.
    """
    store, digest = _store_of_file(trial, path)
    if store is not None and not path.exists():
        store.download(digest, path)


def _name(digest: str) -> str:
    """Return the name of a file of weights in a store."""
    return f"{digest}.safetensors"


class _Below:
    """The part of a bucket below a prefix."""

    def __init__(self, bucket: ArtifactStore, prefix: str) -> None:
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self._bucket.open_reader(self._prefix + artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._bucket.write(self._prefix + artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        self._bucket.remove(self._prefix + artifact_id)


@functools.cache
def _backend(url: str) -> ArtifactStore:
    """Return Optuna's backend of a store; the libraries of clouds are imported only here."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        folder = Path(urllib.request.url2pathname(parts.path))
        folder.mkdir(parents=True, exist_ok=True)
        return pkgutil.resolve_name(ON_DISK)(folder)  # type: ignore[no-any-return]
    if parts.scheme not in IN_CLOUDS or not parts.netloc:
        raise UserError(
            f"a store of weights must be file:///folder, s3://bucket/prefix or gs://bucket/prefix, but got {url!r}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            bucket = pkgutil.resolve_name(IN_CLOUDS[parts.scheme])(parts.netloc)
    except ImportError as error:
        raise UserError(
            f"{parts.scheme}:// needs a library; install it: pip install 'slimfront[{parts.scheme}]'"
        ) from error
    return _Below(bucket, parts.path.strip("/"))  # the clouds' libraries try again; Optuna's Backoff removes ten times
