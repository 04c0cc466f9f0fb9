"""Reporting views into files: CSV for spreadsheets, JSON for programs, Parquet for analysis."""

from __future__ import annotations

import csv
import itertools
import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from orchestrator.context import Context
from orchestrator.errors import UsageError
from orchestrator.ledger.queries.reporting import VIEWS, column_types, read_view

FORMATS = (".csv", ".json", ".jsonl", ".parquet")
ROW_GROUP = 65_536
EVERYTHING = 2**62
SCHEMA_VERSION = 1


def export_view(context: Context, view: str, path: Path, **filters: Any) -> int:
    """Write every row of a reporting view to a .csv, .json, .jsonl or .parquet file, all or nothing; returns how many rows.

    Raises:
        UsageError: no such view or filter, another file type, or a file that cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path} cannot be written: its name must end in {', '.join(FORMATS)}.")
    if view not in VIEWS:
        raise UsageError(f"there is no reporting view {view!r}; there are {', '.join(sorted(VIEWS))}.")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.suffix == ".parquet":
            count = _write_parquet(context, partial, view, filters)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                count = _write(file, path.suffix, view, map(_plain_row, _rows(context, view, filters)))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _rows(context: Context, view: str, filters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All rows, of one instant: one statement, because pages of a view without an order would not fit together."""
    with context.engine.connect() as connection:
        yield from read_view(connection, view, limit=EVERYTHING, **filters)


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in row.items()}


def _write_parquet(context: Context, path: Path, view: str, filters: dict[str, Any]) -> int:
    """Typed by the view's columns, so that an empty or all-null column has its type; objects as JSON texts."""
    import pyarrow
    from pyarrow import parquet

    arrow = {
        "bigint": pyarrow.int64(),
        "integer": pyarrow.int32(),
        "double precision": pyarrow.float64(),
        "real": pyarrow.float32(),
        "numeric": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
        "timestamp with time zone": pyarrow.timestamp("us", tz="UTC"),
    }
    with context.engine.connect() as connection:
        types = column_types(connection, view)
    schema = pyarrow.schema([(name, arrow.get(kind, pyarrow.string())) for name, kind in types.items()])
    rows, count = _rows(context, view, filters), 0
    with parquet.ParquetWriter(path, schema) as writer:
        while some := list(itertools.islice(rows, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist([_typed(row) for row in some], schema))
            count += len(some)
    return count


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value) if isinstance(value, dict | list)
        else float(value) if isinstance(value, Decimal)
        else value
        for name, value in row.items()
    }  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if value is None or isinstance(value, (str, int, float, bool, dict, list)):
        return value
    return float(value)  # Decimal


def _write(file: IO[str], suffix: str, view: str, rows: Iterator[dict[str, Any]]) -> int:
    if suffix == ".csv":
        return _write_csv(file, rows)
    if suffix == ".jsonl":
        return _write_lines(file, rows, between="\n", after="\n")
    file.write(f'{{"schema_version": {SCHEMA_VERSION}, "view": {json.dumps(view)}, "rows": [\n')
    count = _write_lines(file, rows, between=",\n", after="\n")
    file.write("]}\n")
    return count


def _write_lines(file: IO[str], rows: Iterator[dict[str, Any]], *, between: str, after: str) -> int:
    count = 0
    for row in rows:
        file.write((between if count else "") + json.dumps(row, ensure_ascii=False))
        count += 1
    file.write(after if count else "")
    return count


def _write_csv(file: IO[str], rows: Iterator[dict[str, Any]]) -> int:
    writer: csv.DictWriter[str] | None = None
    count = 0
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
        writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in row.items()})
        count += 1
    return count
