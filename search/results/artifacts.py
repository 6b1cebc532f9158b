"""Files of the members of a front as artifacts of Optuna: it finds them in the study's folder, and its dashboard too.

    optuna-dashboard runs/digits/journal.log --artifact-dir runs/digits/artifacts

An artifact is a hard link, so that no file is stored twice.
"""

from __future__ import annotations

import json
import mimetypes
import os
import shutil
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING

from optuna.artifacts import ArtifactMeta

from search.study.console import console
from search.study.errors import reason_of
from search.study.files import whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

ARTIFACT_FOLDER = "artifacts"  # in the folder of a study: a file for each artifact, named by its id
OTHER_TYPE = "application/octet-stream"


def attach(study: Study, trial: FrozenTrial, folder: Path, files: Mapping[str, Path]) -> None:
    """Make files of a member artifacts of its trial; a line says so if that fails, since the files are there.

    Optuna writes the artifacts of a trial into the trial, and a finished trial cannot be changed. So each file is an
    artifact of the study, under `trial-<number>-<name>`, where plain Optuna finds it; and one of the trial, in the
    study's attributes, where the dashboard looks for it.

    Parameters
    ----------
    study, trial
        The study and the member.
    folder
        The folder of the study's files.
    files
        The files, by name. A file replaces the one that its trial has under the same name.
    """
    try:
        for name, path in files.items():
            in_study = f"trial-{trial.number}-{name}"
            _attach(study, "artifacts:", in_study, folder, path)
            of_trial = f"dashboard:artifacts:{trial._trial_id}:"  # noqa: SLF001 - as the dashboard does
            _attach(study, of_trial, name, folder, path)
    except Exception as error:  # noqa: BLE001 - a storage or a disk that is read-only may say so in any way
        console.print(f"the files of trial {trial.number} are no artifacts of Optuna: {reason_of(error)}")


def _attach(study: Study, prefix: str, name: str, folder: Path, path: Path) -> None:
    """Link a file under an id that depends on the attribute and the name alone, then write the attribute."""
    artifact_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{study.study_name}/{prefix}{name}"))
    with whole(folder / ARTIFACT_FOLDER / artifact_id) as unfinished:
        try:
            os.link(path, unfinished)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, unfinished)
    kind, encoding = mimetypes.guess_type(name)
    meta = ArtifactMeta(artifact_id=artifact_id, filename=name, mimetype=kind or OTHER_TYPE, encoding=encoding)
    storage, study_id = study._storage, study._study_id  # noqa: SLF001 - as Optuna's `upload_artifact`
    storage.set_study_system_attr(study_id, prefix + artifact_id, json.dumps(asdict(meta)))
