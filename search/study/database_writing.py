"""Write trials to the tables of Optuna's storage with few statements, as its own operations leave them."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql, sqlite

from search.study.database_reading import require_study
from search.study.history import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial
    from sqlalchemy import Connection

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}  # that can replace rows


def is_plain(template: FrozenTrial | None) -> bool:
    """Return whether a new trial has nothing but a state and attributes."""
    return template is not None and not (template.params or template.values or template.intermediate_values)


def create(connection: Connection, study_id: int, template: FrozenTrial) -> FrozenTrial:
    """Create a plain trial and return it.

    Raises
    ------
    KeyError
        If there is no such study.
    """
    require_study(connection, study_id, lock=True)  # SQLite locks the whole file with the first row that is written
    table = models.TrialModel.__table__
    # Numbers are given in the order of the ids, so the last trial has the largest one; counting all would take longer
    # the more there are
    earlier = table.alias()
    last = sqlalchemy.select(earlier.c.number).where(earlier.c.study_id == study_id)
    last = last.order_by(earlier.c.trial_id.desc()).limit(1)
    row = {
        "number": sqlalchemy.func.coalesce(last.scalar_subquery(), -1) + 1,
        "study_id": study_id,
        "state": template.state,
        "datetime_start": _stored(template.datetime_start),
        "datetime_complete": _stored(template.datetime_complete),
    }
    insert = sqlalchemy.insert(table).values(row)
    attributes = [
        (model.__table__, values)
        for model, values in (
            (models.TrialUserAttributeModel, template.user_attrs),
            (models.TrialSystemAttributeModel, template.system_attrs),
        )
        if values
    ]
    if connection.dialect.name == "postgresql":  # one statement: all others that create a trial wait meanwhile
        new = insert.returning(table.c.trial_id, table.c.number).cte("new")
        query = sqlalchemy.select(new.c.trial_id, new.c.number)
        query = query.add_cte(*(_beside(new, table, values) for table, values in attributes))
        trial_id, number = connection.execute(query).one()
    else:
        key: Any = connection.execute(insert).inserted_primary_key  # SQLite has RETURNING since 3.35
        trial_id = key.trial_id
        for attribute, values in attributes:
            connection.execute(sqlalchemy.insert(attribute), _rows(trial_id, values))
        number = connection.scalar(sqlalchemy.select(table.c.number).where(table.c.trial_id == trial_id))
    created = copy.deepcopy(template)
    created.number = int(number)
    created._trial_id = int(trial_id)  # noqa: SLF001 - as Optuna does
    return created


def _beside(new: sqlalchemy.CTE, table: Any, values: Mapping[str, Any]) -> sqlalchemy.CTE:  # noqa: ANN401 - of Optuna
    """Return the part of a statement that inserts the attributes of the trial that another part creates."""
    text = sqlalchemy.Text()
    rows = sqlalchemy.values(sqlalchemy.column("key", text), sqlalchemy.column("value_json", text), name="attribute")
    rows = rows.data([(key, json.dumps(value)) for key, value in values.items()])
    chosen = sqlalchemy.select(new.c.trial_id, rows.c.key, rows.c.value_json).join(rows, sqlalchemy.true())
    return sqlalchemy.insert(table).from_select(["trial_id", "key", "value_json"], chosen).cte(f"of_{table.name}")


def set_state(connection: Connection, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
    """Set the state of a trial and its values; return False if it is to run, and another process was first.

    In contrast to Optuna's storage one statement looks at the state and sets it, so two processes never both do.
    """
    table = models.TrialModel.__table__
    from_ = [TrialState.WAITING] if state == TrialState.RUNNING else UNFINISHED
    new: dict[str, Any] = {"state": state}
    now = _stored(datetime.now())  # noqa: DTZ005 - Optuna's columns have no zone
    if state == TrialState.RUNNING:
        new["datetime_start"] = now
    if state.is_finished():
        new["datetime_complete"] = now
    chosen = table.c.trial_id == trial_id, table.c.state.in_(from_)
    if not connection.execute(sqlalchemy.update(table).where(*chosen).values(new)).rowcount:
        require_unfinished(connection, trial_id)
        return False
    if values:
        stored = [models.TrialValueModel.value_to_stored_repr(value) for value in values]
        rows = [
            {"trial_id": trial_id, "objective": objective, "value": value, "value_type": kind}
            for objective, (value, kind) in enumerate(stored)
        ]
        _put(connection, models.TrialValueModel.__table__, "objective", rows)
    return True


def set_attributes(connection: Connection, model: Any, trial_id: int, attributes: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Set attributes of a trial."""
    require_unfinished(connection, trial_id)
    _put(connection, model.__table__, "key", _rows(trial_id, attributes))


def add_params(connection: Connection, trial_id: int, params: list[tuple[str, float, str]]) -> None:
    """Add parameters to a trial: names, internal values and distributions; those that are there already stay."""
    require_unfinished(connection, trial_id)
    table = models.TrialParamModel.__table__
    known = set(connection.scalars(sqlalchemy.select(table.c.param_name).where(table.c.trial_id == trial_id)))
    rows = [
        {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}
        for name, value, text in params
        if name not in known
    ]
    if rows:
        connection.execute(sqlalchemy.insert(table), rows)


def require_unfinished(connection: Connection, trial_id: int) -> None:
    """Check that a trial may be changed.

    Raises
    ------
    KeyError
        If there is no such trial.
    UpdateFinishedTrialError
        If it has finished.
    """
    table = models.TrialModel.__table__.c
    found = connection.execute(sqlalchemy.select(table.state, table.number).where(table.trial_id == trial_id)).first()
    if found is None:
        raise KeyError(models.NOT_FOUND_MSG)
    if found.state.is_finished():
        raise UpdateFinishedTrialError(f"Trial#{found.number} has already finished and can not be updated.")


def _put(connection: Connection, table: Any, key: str, rows: list[dict[str, Any]]) -> None:  # noqa: ANN401
    """Insert rows, which replace those with the same trial and key."""
    insert = INSERTS[connection.dialect.name](table)
    new = {name: insert.excluded[name] for name in rows[0] if name not in {"trial_id", key}}
    connection.execute(insert.on_conflict_do_update(index_elements=["trial_id", key], set_=new), rows)


def _rows(trial_id: int, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _stored(time_: datetime | None) -> datetime | None:
    """Return a local time as it is stored, which is UTC, both without a zone."""
    return None if time_ is None else time_.astimezone(UTC).replace(tzinfo=None)
