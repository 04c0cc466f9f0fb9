"""How a statement is run: named, bound, its rows turned into dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, TextClause, text

Row = TypeVar("Row")


@lru_cache(maxsize=512)
def _statement(name: str, sql: str) -> TextClause:
    return text(f"/* hotrefresh.{name} */ {sql}")


def execute(connection: Connection, name: str, sql: str, /, **values: Any) -> CursorResult[*tuple[Any, ...]]:
    """Run one named statement with bound values."""
    return connection.execute(_statement(name, sql), values)


def execute_many(connection: Connection, name: str, sql: str, values: Sequence[Mapping[str, Any]]) -> None:
    """Run one named statement for many sets of values."""
    if values:
        connection.execute(_statement(name, sql), list(values))


def fetch_all(connection: Connection, kind: type[Row], name: str, sql: str, /, **values: Any) -> list[Row]:
    """All rows as dataclasses; the statement's columns are the dataclass's fields."""
    return [kind(**row) for row in execute(connection, name, sql, **values).mappings()]


def fetch_one(connection: Connection, kind: type[Row], name: str, sql: str, /, **values: Any) -> Row | None:
    """The only row as a dataclass, or None."""
    row = execute(connection, name, sql, **values).mappings().one_or_none()
    return None if row is None else kind(**row)


def copy_rows(
    connection: Connection,
    name: str,
    table_and_columns: str,
    rows: Any,
    *,
    binary: Sequence[str] | None = None,
) -> int:
    """COPY an iterable of tuples into a table; returns how many. The table's name is ours, never a user's.

    Args:
        binary: the columns' types, to send them in binary: bytes in text form are twice as long.
    """
    count = 0
    cursor: Any = connection.connection.cursor()
    form = " (FORMAT binary)" if binary else ""
    with cursor.copy(f"/* hotrefresh.{name} */ COPY {table_and_columns} FROM STDIN{form}") as copy:
        if binary:
            copy.set_types(binary)
        for row in rows:
            copy.write_row(row)
            count += 1
    return count
