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


def _storable(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, with what no text column takes spelled out: NUL, and halves of surrogate pairs.

    Such a name is then not found, and such a message is kept; neither ends a statement with a fault of the driver.
    """
    odd = {key: _spelled_out(value) for key, value in values.items() if _is_odd(value)}
    return {**values, **odd} if odd else values


def _is_odd(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], str) and any(map(_is_odd, value))
    return isinstance(value, str) and (
        "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value))
    )


def _spelled_out(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelled_out(each) for each in value]
    return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def execute(connection: Connection, name: str, sql: str, /, **values: Any) -> CursorResult[*tuple[Any, ...]]:
    """Run one named statement with bound values."""
    return connection.execute(_statement(name, sql), _storable(values))


def execute_many(connection: Connection, name: str, sql: str, values: Sequence[Mapping[str, Any]]) -> None:
    """Run one named statement for many sets of values."""
    if values:
        connection.execute(_statement(name, sql), [_storable(each) for each in values])


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
