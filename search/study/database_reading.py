"""Read trials from the tables of Optuna's storage, many at once: the rows of a trial are handled together, not each."""

from __future__ import annotations

import itertools
import json
import operator
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.distributions import FloatDistribution, IntDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.exc import DBAPIError

from search.study.database_naming import among, are_many, parts_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from sqlalchemy import Connection


def states_after(
    connection: Connection, study_id: int, known: set[int], waiting: set[int], last: int
) -> list[tuple[int, TrialState]]:
    """Return the new states of known trials, and the states of all with an id above the last one, by id.

    Parameters
    ----------
    connection
        A connection to the database.
    study_id
        The study.
    known, waiting
        The trials that had not finished when they were last read, which may be thousands, and those of them that
        waited.
    last
        The largest id that is known.

    Raises
    ------
    KeyError
        If there is no such study.
    """
    table, study = models.TrialModel.__table__.c, models.StudyModel.__table__.c.study_id
    query = sqlalchemy.select(table.trial_id, table.state)
    rows: list[Any] = []
    for state, several in ((TrialState.RUNNING, known - waiting), (TrialState.WAITING, known & waiting)):
        for ids in parts_of(connection, sorted(several)):
            rows += connection.execute(query.where(among(connection, table.trial_id, ids), table.state != state)).all()
    new = (table.study_id == study) & (table.trial_id > last)
    joined = models.StudyModel.__table__.outerjoin(models.TrialModel.__table__, new)
    found = connection.execute(query.select_from(joined).where(study == study_id)).all()
    if not found:
        raise KeyError(models.NOT_FOUND_MSG)
    return sorted({trial_id: state for trial_id, state in (*rows, *found) if trial_id is not None}.items())


def require_study(connection: Connection, study_id: int, *, lock: bool = False) -> None:
    """Check that a study exists; keep others from creating trials in it until the transaction ends.

    Raises
    ------
    KeyError
        If it does not.
    """
    column = models.StudyModel.__table__.c.study_id
    query = sqlalchemy.select(column).where(column == study_id)
    if connection.scalar(query.with_for_update() if lock else query) is None:
        raise KeyError(models.NOT_FOUND_MSG)


def created_with(connection: Connection, study_id: int, key: str, value: Any) -> int | None:  # noqa: ANN401 - JSON
    """Return the id of the trial of a study that was created with a system attribute; None if there is none.

    A transaction that may be creating it at this moment is waited for.

    Raises
    ------
    KeyError
        If there is no such study.
    """
    require_study(connection, study_id, lock=True)
    trial, attribute = models.TrialModel.__table__.c, models.TrialSystemAttributeModel.__table__.c
    query = sqlalchemy.select(trial.trial_id).where(
        trial.study_id == study_id,
        attribute.trial_id == trial.trial_id,
        attribute.key == key,
        attribute.value_json == json.dumps(value),
    )
    found: int | None = connection.scalar(query)
    return found


class _Shared:
    """What trials with the same parameters share: the names, and the dictionary of the distributions."""

    def __init__(self, known: dict[str, BaseDistribution]) -> None:
        self._known = known
        self._kinds: dict[Any, tuple[tuple[str, ...], dict[str, BaseDistribution], list[tuple[int, Any]]]] = {}
        self._merged: dict[tuple[Any, ...], dict[str, BaseDistribution]] = {}

    def add(self, trial: FrozenTrial, names: Sequence[str], numbers: Sequence[float], texts: Sequence[str]) -> None:
        """Add parameters to a trial, of which the internal values and the texts of the distributions are given."""
        key = tuple(names), tuple(texts)
        if key not in self._kinds:
            self._kinds[key] = self._kind(*key)
        interned, distributions, converted = self._kinds[key]
        values: list[Any] = list(numbers)
        for at, convert in converted:
            values[at] = convert(values[at])
        trial.params.update(zip(interned, values, strict=True))
        if trial.distributions:  # the rows of several trials alternate
            distributions = self._once(trial.distributions | distributions)
        trial._distributions = distributions  # noqa: SLF001 - Optuna has no other way to share it

    def _kind(
        self, names: tuple[str, ...], texts: tuple[str, ...]
    ) -> tuple[tuple[str, ...], dict[str, BaseDistribution], list[tuple[int, Any]]]:
        """Return the names, the distributions, and the positions of those values that are not stored as they are."""
        for text in texts:
            if text not in self._known:
                self._known[text] = json_to_distribution(text)
        interned = tuple(map(sys.intern, names))
        distributions = {name: self._known[text] for name, text in zip(interned, texts, strict=True)}
        converted = [
            (at, int if isinstance(one, IntDistribution) else one.to_external_repr)
            for at, one in enumerate(distributions.values())
            if not isinstance(one, FloatDistribution)
        ]
        return interned, self._once(distributions), converted

    def _once(self, distributions: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
        """Return the dictionary that is kept of equal ones."""
        same = tuple(distributions), tuple(map(id, distributions.values()))
        return self._merged.setdefault(same, distributions)


def read_trials(
    connection: Connection,
    wanted: set[int],
    distributions: dict[str, BaseDistribution],
    known: Mapping[int, FrozenTrial],
) -> list[FrozenTrial]:
    """Return trials by their ids.

    Parameters
    ----------
    connection
        A connection to the database.
    wanted
        The ids.
    distributions
        Distributions by their texts, to which new ones are added, so that equal ones are kept once.
    known
        Some of them as they were read before. Parameters never change, so they are not read again unless there are
        more by now.
    """
    table = models.TrialModel.__table__.c
    query = sqlalchemy.select(table.trial_id, table.number, table.state, table.datetime_start, table.datetime_complete)
    ids, shared = sorted(wanted), _Shared(distributions)
    trials = {
        at: FrozenTrial(number, state, None, _local(start), _local(end), {}, {}, {}, {}, {}, at)
        for at, number, state, start, end in connection.execute(query.where(rows_of(connection, table.trial_id, ids)))
        if at in wanted
    }

    def columns(model: Any, *names: str) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - of Optuna
        """Yield the columns of a table, each with its trial."""
        return _with_trials(_columns(connection, model, ids, *names), trials)

    kept = _with_all_params(connection, known)
    others = [at for at in ids if at not in kept]
    for trial, *found in _with_trials(_params(connection, others) if others else iter(()), trials):
        shared.add(trial, *found)
    for at in kept & trials.keys():
        trials[at].params, trials[at]._distributions = known[at].params, known[at]._distributions  # noqa: SLF001
    objectives: dict[int, dict[int, float]] = {}
    values: Any = models.TrialValueModel
    for trial, places, numbers, kinds in columns(values, "objective", "value", "value_type"):
        stored = map(values.stored_repr_to_value, numbers, map(values.TrialValueType.__getitem__, kinds))
        objectives.setdefault(trial._trial_id, {}).update(zip(places, stored, strict=True))  # noqa: SLF001
    for at, by_place in objectives.items():
        trials[at].values = [by_place[place] for place in sorted(by_place)]
    for trial, keys, texts in columns(models.TrialUserAttributeModel, "key", "value_json"):
        trial.user_attrs.update(zip(map(sys.intern, keys), _values(texts), strict=True))
    for trial, keys, texts in columns(models.TrialSystemAttributeModel, "key", "value_json"):
        trial.system_attrs.update(zip(map(sys.intern, keys), _values(texts), strict=True))
    values = models.TrialIntermediateValueModel
    kind = "intermediate_value", "intermediate_value_type"
    for trial, steps, numbers, kinds in columns(values, "step", *kind):
        types = map(values.TrialIntermediateValueType.__getitem__, kinds)
        stored = map(values.stored_repr_to_intermediate_value, numbers, types)
        trial.intermediate_values.update(zip(steps, stored, strict=True))
    return [trials[at] for at in sorted(trials)]


def _with_all_params(connection: Connection, known: Mapping[int, FrozenTrial]) -> set[int]:
    """Return the ids of the known trials that have no parameters but the known ones."""
    ids = sorted(at for at, trial in known.items() if trial.params)
    if not ids:
        return set()
    table = models.TrialParamModel.__table__.c.trial_id
    query = sqlalchemy.select(table, sqlalchemy.func.count()).where(rows_of(connection, table, ids)).group_by(table)
    return {at for at, count in connection.execute(query).all() if at in known and count == len(known[at].params)}


def _with_trials(rows: Iterator[tuple[Any, ...]], trials: dict[int, FrozenTrial]) -> Iterator[tuple[Any, ...]]:
    """Yield rows, each with its trial; one that was created meanwhile is not among them."""
    for at, *found in rows:
        if at in trials:
            yield trials[at], *found


def _params(connection: Connection, ids: list[int]) -> Iterator[tuple[Any, ...]]:
    """Yield trials, by id, each with the names, the internal values and the distributions of its parameters.

    A long study is asked for the values alone, and for a digest of the rest, which most trials share: PostgreSQL would
    send, and the driver decode, the same texts for every trial.
    """
    model: Any = models.TrialParamModel
    if connection.dialect.name != "postgresql" or not are_many(len(ids)):
        yield from _columns(connection, model, ids, "param_name", "param_value", "distribution_json")
        return
    table = model.__table__.c
    separator = sqlalchemy.literal("\n")
    each = table.param_name + separator + table.distribution_json + separator
    text = sqlalchemy.func.string_agg(each, aggregate_order_by(sqlalchemy.literal(""), table.param_id))
    digest = sqlalchemy.func.sha256(sqlalchemy.func.convert_to(text, "UTF8"), type_=sqlalchemy.types.NullType())
    values = sqlalchemy.func.array_agg(aggregate_order_by(table.param_value, table.param_id))
    query = sqlalchemy.select(table.trial_id, sqlalchemy.type_coerce(values, sqlalchemy.types.NullType()), digest)
    rows = connection.execute(query.where(rows_of(connection, table.trial_id, ids)).group_by(table.trial_id)).all()
    first = {kind: at for at, _, kind in reversed(rows)}
    kinds = {
        at: found
        for at, *found in _columns(connection, model, sorted(first.values()), "param_name", "distribution_json")
    }
    for at, numbers, kind in rows:
        names, texts = (several[: len(numbers)] for several in kinds[first[kind]])  # one that runs may have more by now
        yield at, names, numbers, texts


def _columns(connection: Connection, model: Any, ids: list[int], *names: str) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    """Yield trials, by id, each with columns of the rows that it has in a table, in the order of the keys.

    A trial comes again if its rows alternate with those of others.
    """
    table = model.__table__
    (key,), at = table.primary_key, table.c.trial_id
    chosen = rows_of(connection, at, ids)
    wanted = [_plain(table.c[name]) for name in names]
    if connection.dialect.name == "postgresql":  # the driver decodes arrays in C
        arrays = [
            sqlalchemy.func.array_agg(aggregate_order_by(one, key), type_=sqlalchemy.types.NullType()) for one in wanted
        ]
        query = sqlalchemy.select(at, *arrays).where(chosen).group_by(at)
        yield from map(tuple, connection.execute(query).all())  # all: the driver's own loop
        return
    query = sqlalchemy.select(at, *wanted).where(chosen).order_by(key)
    result = connection.execute(query)
    cursor: Any = result.cursor  # the driver's: SQLAlchemy's rows would cost more than all the rest
    try:
        for trial_id, rows in itertools.groupby(cursor, operator.itemgetter(0)):
            _, *found = zip(*rows, strict=True)
            yield trial_id, *found
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(str(query), None, error, connection.dialect.loaded_dbapi.Error) from error
    finally:
        result.close()


def _plain(column: sqlalchemy.Column[Any]) -> sqlalchemy.ColumnElement[Any]:
    """Return a column as the driver gives it; of an enumeration the name, which in PostgreSQL is no text."""
    text = isinstance(column.type, sqlalchemy.Enum)
    return sqlalchemy.type_coerce(
        sqlalchemy.cast(column, sqlalchemy.Text) if text else column, sqlalchemy.types.NullType()
    )


def _values(texts: Sequence[str]) -> list[Any]:
    """Return the values of several JSON texts."""
    found: list[Any] = json.loads(f"[{','.join(texts)}]")
    return found


def _local(time_: datetime | None) -> datetime | None:
    """Return the local time of a stored one, which is UTC, both without a zone."""
    return None if time_ is None else time_.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
