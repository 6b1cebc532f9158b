"""The checkpoint of a trial's training, in the folder of the study and in a store that several machines share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from search.study.files import Damaged, sha256
from search.study.records import CHECKPOINT
from search.study.weights import CHECKPOINTS
from search.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Trial

    from search.study.weights import Store


class TrialCheckpoint:
    """The checkpoint of a trial's training; where there is a store, other machines go on from it too.

    Parameters
    ----------
    trial, store
        The trial, and the store of weights; None if there is none.
    folder
        The folder of the study.
    training
        What identifies the training: the digest of the plan, the seed, the epochs, the batch size.

    Attributes
    ----------
    here
        The checkpoint in the folder.
    """

    def __init__(self, trial: Trial, store: Store | None, folder: Path, training: tuple[str, int, float, int]) -> None:
        self._trial, self._store = trial, store
        key, _, epochs, _ = training
        path = folder / CHECKPOINTS / f"{key}-{epochs:g}.safetensors"
        self.here = Checkpoint(path, " ".join(map(str, training)), self._upload)
        if store is not None and CHECKPOINT in trial.user_attrs and not path.exists():
            with contextlib.suppress(Damaged):  # the training starts again
                store.download(trial.user_attrs[CHECKPOINT], path)

    def remove(self) -> None:
        """Remove it, once the training has ended."""
        self.here.remove()
        self._remove_upload()

    def _upload(self) -> None:
        if self._store is not None:
            digest = sha256(self.here.path)
            self._store.upload(self.here.path, digest)
            self._remove_upload()
            self._trial.set_user_attr(CHECKPOINT, digest)

    def _remove_upload(self) -> None:
        if self._store is not None and CHECKPOINT in self._trial.user_attrs:
            self._store.remove(self._trial.user_attrs[CHECKPOINT])
