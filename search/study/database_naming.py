"""How a query names the trials whose rows it wants: each by its id, or all between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Dialect

IDS_NAMED = 500  # trials that a query names one by one (chosen)


def are_many(count: int) -> bool:
    """Whether so many trials are read in another way than a few."""
    return count > IDS_NAMED


def reads_between(dialect: Dialect, count: int) -> bool:
    """Whether a query for so many trials reads all between the first and the last; PostgreSQL takes any list."""
    return are_many(count) and dialect.name != "postgresql"


def rows_of(
    connection: Connection, column: sqlalchemy.ColumnElement[int], ids: list[int]
) -> sqlalchemy.ColumnElement[bool]:
    """Return a condition for the rows of these trials; of many, not in PostgreSQL, for those of all between them."""
    if not reads_between(connection.dialect, len(ids)):
        return among(connection, column, ids)
    # SQLite would go through an index and sort all rows by their keys, which costs more than reading a whole table
    return (column + 0 if connection.dialect.name == "sqlite" else column).between(ids[0], ids[-1])


def among(
    connection: Connection, column: sqlalchemy.ColumnElement[int], ids: list[int]
) -> sqlalchemy.ColumnElement[bool]:
    """Return the condition that a number is one of these; in PostgreSQL its text does not depend on how many."""
    if connection.dialect.name == "postgresql":
        return column == sqlalchemy.any_(sqlalchemy.literal(ids, postgresql.ARRAY(sqlalchemy.Integer)))
    return column.in_(ids)


def parts_of(connection: Connection, ids: list[int]) -> Iterator[list[int]]:
    """Yield the ids in lists that a query can name."""
    most = max(1, len(ids)) if connection.dialect.name == "postgresql" else IDS_NAMED
    yield from (ids[start : start + most] for start in range(0, len(ids), most))
