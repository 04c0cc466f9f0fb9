"""CSV and Parquet manifests: columns `key`, then `path` (an image file) or `text`, and optionally `label`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from models.datasets import Item, ItemListing, Rejected
from models.datasets.folder import uri_of
from models.errors import ItemError, UsageError

MAX_TEXT_BYTES = 2**20


def list_items(path: Path) -> ItemListing:
    """The rows of a manifest as items; relative paths start at the manifest's folder.

    Raises:
        UsageError: the file cannot be read, or lacks a column.
    """
    columns = _columns(path)
    content = _content_column(path, columns)
    items: list[Item] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(_rows(path), 1):
        key, value = _word(row.get("key")), _word(row.get(content))
        label = _word(row.get("label")) or None
        if not key:
            rejected.append(Rejected(f"row {number}", value[:200], "no key"))
        elif not value:
            rejected.append(Rejected(key, "", f"no {content}"))
        elif content == "text":
            items.append(Item(key, "text:" + quote(value), label))
        else:
            file = path.absolute().parent / value
            if file.is_file():
                items.append(Item(key, uri_of(file), label))
            else:
                rejected.append(Rejected(key, uri_of(file), "missing"))
    return ItemListing(items, rejected)


def modality_of(path: Path) -> str:
    """ "text" where there is a text column, else "image"."""
    return "text" if _content_column(path, _columns(path)) == "text" else "image"


def read(uri: str) -> str:
    """The text inside a `text:` URI. Raises ItemError for an empty or an overlong one."""
    text = unquote(uri.partition(":")[2])
    if not text.strip():
        raise ItemError("empty", "the text is empty.")
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ItemError(
            "too_large", f"the text has {len(text.encode())} bytes; the limit is {MAX_TEXT_BYTES}."
        )
    return text


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _content_column(path: Path, columns: list[str]) -> str:
    content = [name for name in ("path", "text") if name in columns]
    if "key" not in columns or len(content) != 1:
        raise UsageError(
            f"{path} needs the columns key, and path or text (one of them), optionally label; "
            f"it has {', '.join(columns) or 'none'}."
        )
    return content[0]


def _columns(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as parquet

            return list(parquet.read_schema(path).names)
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except Exception as error:
        raise UsageError(_unreadable(path, error)) from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as parquet

            for batch in parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        else:
            csv.field_size_limit(2 * MAX_TEXT_BYTES)
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from csv.DictReader(file)
    except Exception as error:
        raise UsageError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no file {path}."
    if isinstance(error, UnicodeDecodeError):
        return f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8."
    return f"{path} cannot be read: {error}."
