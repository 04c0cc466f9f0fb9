"""CSV and Parquet manifests: columns `key`, then `path` (an image file), `clip` (a video or a folder of frames) or `text`.

Of several an item has each that its row gives: it is the same thing in several modalities. Optional is `label`.
Other columns are attributes: queries are sliced by them. Of a Parquet file only texts, whole numbers and yes or no are.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from models.datasets import Item, ItemListing, Rejected, clip_files, folder, inline
from models.errors import UsageError
from models.plain_file import open_plain

MAX_BYTES = 4 * 2**30
MAX_ROWS = 100_000_000
# A longer field is a forgotten closing quote; up to here one overlong text costs its own row and no other.
_MAX_FIELD_CHARACTERS = 64 * 2**20
# Parquet unpacks: what is few bytes in the file may be many in memory.
_ROWS_AT_ONCE, _MAX_BYTES_AT_ONCE = 1024, 2 * 2**30
_COLUMNS = ("key", "path", "clip", "text", "label")
_CONTENTS = {"path": "image", "clip": "video", "text": "text"}
"""Column -> the modality of what it names."""
_EXTRA = "\0extra"  # fields beyond the header


def list_items(path: Path, modality: str | None = None) -> ItemListing:
    """The rows of a manifest as items; relative paths start at the manifest's folder.

    Args:
        modality: one of `modalities_of`: what every item must have; None: the first.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has no row.
    """
    columns = _content_columns(path, _columns(path))
    columns.sort(key=lambda column: _CONTENTS[column] != modality)  # that one first, the others as they stand
    base = path.absolute().parent
    items: list[Item] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(_rows(path), 1):
        outcome = _outcome(row, number, columns, base)
        if isinstance(outcome, Item):
            items.append(outcome)
        else:
            rejected.append(outcome)
    if not items and not rejected:
        raise UsageError(
            f"{path} holds no usable item: it has no row below its header. Write one row an item: key, {columns[0]}."
        )
    return ItemListing(items, rejected)


def _outcome(row: dict[str, Any], number: int, columns: list[str], base: Path) -> Item | Rejected:
    """An item of what the row gives; refused whole where something that it gives cannot be used."""
    key, value = _word(row.get("key")), _word(row.get(columns[0]))
    label = _word(row.get("label")) or None
    if not key:
        return Rejected(f"row {number}", value[:200], "no key")
    if row.get(_EXTRA):
        return Rejected(key, value[:200], "more fields than columns: a comma outside quotes")
    if not value:
        return Rejected(key, "", f"no {columns[0]}")
    uris: dict[str, str] = {}
    for column in columns:
        if given := _word(row.get(column)):
            found = _uri(key, given, column, base)
            if isinstance(found, Rejected):
                return found
            uris[_CONTENTS[column]] = found
    return Item(key, uris.pop(_CONTENTS[columns[0]]), label, _attributes(row), uris)


def _uri(key: str, value: str, column: str, base: Path) -> str | Rejected:
    """Of one column's content."""
    if column == "text":
        if len(value.encode("utf-8", "replace")) > inline.MAX_TEXT_BYTES:
            return Rejected(key, "", "too large")
        return inline.uri_of(value)
    if not os.path.isabs(value) and os.path.normpath(value).split(os.sep, 1)[0] == os.pardir:
        return Rejected(key, value[:200], "leaves the manifest's folder: write an absolute path")
    file = base / value
    uri: str = (clip_files if column == "clip" else folder).uri_of(file)
    # os.path, not Path: it answers False for names that no system takes, where Path raises.
    if not (os.path.isfile(file) or (column == "clip" and os.path.isdir(file))):
        return Rejected(key, uri, "missing")
    return uri


def _attributes(row: dict[str, Any]) -> dict[str, str]:
    words = {name: _word(value) for name, value in row.items() if name and name not in (*_COLUMNS, _EXTRA)}
    return {name: value for name, value in words.items() if value}


def modalities_of(path: Path) -> tuple[str, ...]:
    """Of each content column, in the order of the file. Raises as `list_items`."""
    return tuple(_CONTENTS[column] for column in _content_columns(path, _columns(path)))


def read_table(path: Path, column: str) -> Iterator[dict[str, Any]]:
    """The rows of any CSV or Parquet file that has `column`; texts, whole numbers and yes or no of a Parquet file.

    Raises:
        UsageError: the file cannot be read, or lacks the column.
    """
    columns = _columns(path)
    if column not in columns:
        raise UsageError(
            f"{path} needs the column {column}; it has {', '.join(map(str, columns))[:500] or 'none'}."
        )
    return _rows(path)


def _word(value: Any) -> str:
    if isinstance(value, bytes):  # Parquet written without a string type
        value = value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value).strip()


def _content_columns(path: Path, columns: list[str]) -> list[str]:
    content = [name for name in dict.fromkeys(columns) if name in _CONTENTS]
    if "key" not in columns or not content:
        raise UsageError(
            f"{path} needs the columns key, and path, clip or text (one or more of them), optionally label; "
            f"it has {', '.join(columns)[:500] or 'none'}."
        )
    return content


def _columns(path: Path) -> list[str]:
    try:
        with open_plain(path, MAX_BYTES) as file:
            if path.suffix.lower() == ".parquet":
                import pyarrow.parquet as parquet

                return list(parquet.read_schema(file).names)
            return next(csv.reader(_decoded(file)), [])
    except Exception as error:
        raise UsageError(_unreadable(path, error)) from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    read = _parquet_rows if path.suffix.lower() == ".parquet" else _csv_rows
    try:
        with open_plain(path, MAX_BYTES) as file:
            for number, row in enumerate(read(file), 1):
                if number > MAX_ROWS:
                    raise ValueError(f"it has more than {MAX_ROWS} rows")
                yield row
    except Exception as error:
        raise UsageError(_unreadable(path, error)) from error


def _parquet_rows(file: BufferedReader) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as opened:
        wanted = [each.name for each in opened.schema_arrow if each.name in _COLUMNS or _is_plain(each.type)]
        for batch in opened.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
            if batch.nbytes > _MAX_BYTES_AT_ONCE:
                raise ValueError(f"{len(batch)} of its rows unpack to {batch.nbytes} bytes")
            yield from batch.to_pylist()


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        each(kind) for each in (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    )


def _csv_rows(file: BufferedReader) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD_CHARACTERS))
    rows = csv.DictReader(_decoded(file), restkey=_EXTRA)
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"{error}, in a row that starts after line {rows.line_num}") from error


def _decoded(file: BufferedReader) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, newline="", encoding="utf-8-sig")


def _unreadable(path: Path, error: Exception) -> str:
    shown = repr(str(path)[:500])[1:-1]
    if isinstance(error, FileNotFoundError):
        return f"there is no file {shown}."
    if isinstance(error, UnicodeDecodeError):
        return f"{shown} is not UTF-8 (it has the byte 0x{error.object[error.start]:02x}); save it as UTF-8."
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{shown} cannot be read: {said[:500]}. Repair the file, or write it again."
