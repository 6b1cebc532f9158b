"""A snapshot beside a journal: what its first records say, in a form that is read in a tenth of the time.

It is JSON, of which nothing is executed, with a checksum of its own and one of the records that it stands for. If one
of them differs, or anything else is wrong with it, the journal is read from its beginning.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.distributions import CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from search.study.files import whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash
    from pathlib import Path

    from optuna.distributions import BaseDistribution

SNAPSHOT_SUFFIX = ".snapshot"  # to the name of the journal
FORMAT = 1  # of the snapshot; another one is not read
CHECKED_AT_ONCE = 2**20  # bytes of the journal that are checked at a time


class Snapshot(NamedTuple):
    """What the first records of a journal say.

    Attributes
    ----------
    records, length, digest
        Number of these records, their bytes, and the hash of these bytes.
    studies, next_study
        The studies by their ids, and the id of the next one.
    trials, trials_of
        The trials by their ids, and the ids of each study, those that were deleted included.
    """

    records: int
    length: int
    digest: _Hash
    studies: dict[int, FrozenStudy]
    next_study: int
    trials: dict[int, FrozenTrial]
    trials_of: dict[int, list[int]]


def save(journal: Path, snapshot: Snapshot) -> None:
    """Write a snapshot beside the journal, in place of another one; the one of any worker is as good."""
    path = journal.with_name(journal.name + SNAPSHOT_SUFFIX)
    kinds: dict[tuple[Any, ...], int] = {}
    trials = [_row(trial, kinds) for trial in snapshot.trials.values()]
    body = {
        "studies": [
            [one._study_id, one.study_name, [int(each) for each in one.directions], one.user_attrs, one.system_attrs]  # noqa: SLF001
            for one in snapshot.studies.values()
        ],
        "next_study": snapshot.next_study,
        "trials_of": list(snapshot.trials_of.items()),
        "kinds": [
            [names, [(name, distribution_to_json(one)) for name, one in zip(of, distributions, strict=True)]]
            for names, of, distributions in kinds
        ],
        "trials": trials,
    }
    text = json.dumps(body, separators=(",", ":")).encode()
    head = {
        "format": FORMAT,
        "records": snapshot.records,
        "length": snapshot.length,
        "journal_sha256": snapshot.digest.hexdigest(),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    with whole(path) as unfinished:
        unfinished.write_bytes(json.dumps(head).encode() + b"\n" + text)


def load(journal: Path) -> Snapshot | None:
    """Return the snapshot of a journal; None if there is none, or it is not of this journal as it is."""
    path = journal.with_name(journal.name + SNAPSHOT_SUFFIX)
    head = _head(path)
    if head is None:
        return None
    try:
        text = path.read_bytes().partition(b"\n")[2]
        digest = _digest(journal, head["length"])
        if hashlib.sha256(text).hexdigest() != head["sha256"] or digest.hexdigest() != head["journal_sha256"]:
            return None
        body = json.loads(text)
        kinds = [_kind(names, dict(distributions)) for names, distributions in body["kinds"]]
        return Snapshot(
            head["records"],
            head["length"],
            digest,
            {row[0]: _study(*row) for row in body["studies"]},
            body["next_study"],
            {at: _trial(at, row, kinds) for at, row in enumerate(body["trials"])},
            dict(body["trials_of"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _head(path: Path) -> dict[str, Any] | None:
    """Return the first line of a snapshot, None if it is not one of this format."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
        return head if isinstance(head, dict) and head["format"] == FORMAT else None
    except (OSError, ValueError, LookupError):
        return None


def _digest(journal: Path, length: int) -> _Hash:
    """Return the hash of the first bytes of a journal."""
    digest = hashlib.sha256()
    with journal.open("rb") as file:
        while length > 0 and (chunk := file.read(min(length, CHECKED_AT_ONCE))):
            digest.update(chunk)
            length -= len(chunk)
    return digest


def _row(trial: FrozenTrial, kinds: dict[tuple[Any, ...], int]) -> list[Any]:
    """Return a trial as it is written; `kinds` are the combinations of parameters and distributions so far."""
    params, of = trial.params, trial.distributions
    kind = kinds.setdefault((tuple(params), tuple(of), tuple(of.values())), len(kinds))
    return [
        trial.number,
        int(trial.state),
        trial.values,
        _seconds(trial.datetime_start),
        _seconds(trial.datetime_complete),
        kind,
        [
            of[name].to_internal_repr(value) if isinstance(of[name], CategoricalDistribution) else value
            for name, value in params.items()
        ],
        trial.user_attrs,
        trial.system_attrs,
        list(trial.intermediate_values.items()),
    ]


def _kind(names: list[str], distributions: dict[str, str]) -> Callable[[list[Any]], tuple[dict[str, Any], Any]]:
    """Return what makes the parameters and distributions of a trial from its row."""
    of: dict[str, BaseDistribution] = {name: json_to_distribution(text) for name, text in distributions.items()}
    choices = [name for name in names if isinstance(of[name], CategoricalDistribution)]

    def make(values: list[Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        params = dict(zip(names, values, strict=True))
        for name in choices:
            params[name] = of[name].to_external_repr(params[name])
        return params, of

    return make


def _trial(at: int, row: list[Any], kinds: list[Callable[[list[Any]], tuple[dict[str, Any], Any]]]) -> FrozenTrial:
    number, state, values, started, ended, kind, internal, user_attrs, system_attrs, intermediate = row
    params, distributions = kinds[kind](internal)
    state = TrialState(state)
    return FrozenTrial(
        number, state, None, _time(started), _time(ended), params,
        distributions if state.is_finished() else dict(distributions),
        user_attrs, system_attrs, dict(intermediate), at, values=values,
    )  # fmt: skip


def _study(
    number: int, name: str, directions: list[int], user_attrs: dict[str, Any], system_attrs: dict[str, Any]
) -> FrozenStudy:
    return FrozenStudy(name, None, user_attrs, system_attrs, number, directions=[StudyDirection(d) for d in directions])


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _time(seconds: float | None) -> datetime | None:
    """Return the local time without a zone, as Optuna's trials have it."""
    return None if seconds is None else datetime.fromtimestamp(seconds)  # noqa: DTZ006
