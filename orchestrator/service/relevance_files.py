"""Explicit relevance out of CSV files: pairs that are right, and clicks, which are weaker."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from orchestrator.errors import UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.rows import GalleryRow


@dataclass(frozen=True)
class PairsRead:
    """Relevant (query no, item row) pairs of a file.

    Attributes:
        pairs: in order, none twice.
        bad: (query, item, reason) of the lines that name nothing known.
        too_few: pairs clicked fewer times than asked for, left out.
    """

    pairs: list[tuple[int, int]] = field(default_factory=list)
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    too_few: int = 0


def read_pairs(
    connection: Connection, gallery: GalleryRow, path: Path, numbers: Mapping[str, int]
) -> PairsRead:
    """Pairs of a CSV with columns query,item; `numbers`: query key -> its number.

    Raises:
        UsageError: the file cannot be read, or lacks a column.
    """
    pairs, bad = _known(
        connection, gallery, {(query, item): 1 for query, item, _ in _lines(path, "pairs")}, numbers
    )
    return PairsRead(sorted(pairs), bad)


def read_clicks(
    connection: Connection, gallery: GalleryRow, path: Path, numbers: Mapping[str, int], minimum: int
) -> PairsRead:
    """Clicked pairs of a CSV with columns query,item and, if there is one, count; without it every line is a click.

    The counts of a pair's lines are added up; a pair of fewer than `minimum` clicks is left out.

    Raises:
        UsageError: the file cannot be read, lacks a column, or holds a count that is none.
    """
    clicks: dict[tuple[str, str], int] = {}
    for number, (query, item, count) in enumerate(_lines(path, "clicks"), 2):
        clicks[query, item] = clicks.get((query, item), 0) + _count(path, number, count)
    pairs, bad = _known(connection, gallery, clicks, numbers)
    kept = sorted(pair for pair, count in pairs.items() if count >= minimum)
    return PairsRead(kept, bad, len(pairs) - len(kept))


def _lines(path: Path, kind: str) -> Iterable[tuple[str, str, str | None]]:
    """(query, item, count or None) of every line."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"query", "item"} <= set(reader.fieldnames or ()):
                raise UsageError(
                    f"{path} needs the columns query,item; it has {', '.join(reader.fieldnames or ['none'])}."
                )
            for line in reader:
                count = (line["count"] or "") if "count" in line else None
                yield line["query"] or "", line["item"] or "", count
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{kind} file {path} cannot be read: {error}. Write it again as UTF-8 with the columns query,item."
        ) from error


def _count(path: Path, number: int, text: str | None) -> int:
    if text is None:
        return 1
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text)):
        raise UsageError(
            f"clicks file {path}, line {number}: count is {text[:40]!r}; write a whole number from 1, or leave the column out."
        )
    return int(text)


def _known(
    connection: Connection,
    gallery: GalleryRow,
    pairs: Mapping[tuple[str, str], int],
    numbers: Mapping[str, int],
) -> tuple[dict[tuple[int, int], int], list[tuple[str, str, str]]]:
    """The pairs by number and row, and those that name a query or an item that there is not."""
    rows = gallery_queries.rows_of_keys(connection, gallery.id, sorted({item for _, item in pairs}))
    good, bad = {}, []
    for (query, item), count in pairs.items():
        if query in numbers and item in rows:
            good[numbers[query], rows[item]] = count
        else:
            what = "query" if query not in numbers else "item"
            bad.append((query, item, f"pair names an unknown {what}"))
    return good, bad
