"""Trainings of `confirm` on other machines: records are in the study's storage, the weights to export in its store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search.study.console import console
from search.study.files import load_or_nothing, save_json
from search.study.records import CONFIRMED_RUN, STORE, WEIGHTS
from search.study.weights import CONFIRMATION, CONFIRMED, store_of

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study


def share(study: Study, record: dict[str, Any], weights: Path) -> dict[str, Any]:
    """Give the record of a training to the storage of a study that has a store, and its weights to the store.

    Parameters
    ----------
    study
        The study.
    record
        The record; of seed 0 the weights are uploaded, which are those that are exported.
    weights
        The file of the weights, whose name without its suffix is that of the record.

    Returns
    -------
    dict
        The record; with the URL of the store, if it has the weights.

    Raises
    ------
    MachineFault
        If the store does not take them.
    """
    store = store_of(study)
    if store is None:
        return record
    if WEIGHTS in record and record["seed"] == 0:
        store.upload(weights, record[WEIGHTS])
        record = record | {STORE: store.url}
    study.set_user_attr(CONFIRMED_RUN + weights.stem, record)
    return record


def bring(study: Study, folder: Path) -> None:
    """Write the records that other machines gave to the storage of a study; weights are downloaded where they are used.

    A record that is here already and differs is of an earlier recipe; it and its weights are replaced.

    Parameters
    ----------
    study
        The study.
    folder
        The folder of its files on this machine.
    """
    if store_of(study) is None:
        return
    for key, record in study.user_attrs.items():
        name = key.removeprefix(CONFIRMED_RUN)
        if name == key or not CONFIRMATION.fullmatch(name) or not isinstance(record, dict):
            continue  # names in a storage may be anything
        path = folder / CONFIRMED / f"{name}.json"
        if not path.exists() or load_or_nothing(path, {}, "that of the storage replaces it") != record:
            console.detail(f"trial and seed {name} were confirmed on another machine")
            path.with_suffix(".safetensors").unlink(missing_ok=True)
            save_json(path, record)
