"""Which items a search may answer with, and what they are: their attributes in memory, so that a filter is one comparison of
an array, and a hit says what it was filtered by.

An attribute is a column: one int32 a row, the place of its value in a dictionary of the values there are; -1 where the item
has none. The label is an attribute like any other, named `label`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.core.shards import WHOLE, Shard
from orchestrator.errors import UsageError
from orchestrator.ledger.queries import attributes as attribute_queries
from orchestrator.ledger.queries.attributes import Contents
from orchestrator.ledger.rows import LogEntry, RolloutRow

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Where = Mapping[str, str | Sequence[str]]

LABEL = "label"
_NONE = -1
# Items read by one statement.
_PAGE = 50_000


def checked(where: Where) -> dict[str, tuple[str, ...]]:
    """A filter as attribute → the values that are let through.

    Raises:
        UsageError: it is no such mapping, or lets no value of an attribute through.
    """
    if not isinstance(where, Mapping):
        raise UsageError('a filter must name attributes and values, such as {"tenant": "acme"}.')
    found = {}
    for name, given in where.items():
        values = (given,) if isinstance(given, str) else given
        fits = isinstance(values, Sequence) and len(values) > 0
        if not isinstance(name, str) or not fits or not all(isinstance(each, str) for each in values):
            raise UsageError(
                f"the filter on {str(name)[:80]!r} must be a text, or a list of texts that is not empty."
            )
        found[name] = tuple(values)
    return found


@dataclass(frozen=True)
class Picked:
    """The codes of some rows and what codes mean, of each attribute: taken under the replica's lock, read outside of it.

    A code never changes its meaning, so what is written meanwhile does no harm.
    """

    codes: Mapping[str, npt.NDArray[np.int32]]
    values: Mapping[str, Sequence[str]]

    def of(self, place: tuple[int, ...]) -> dict[str, str]:
        """The attributes of the row at a place of the rows that were picked."""
        return {
            name: self.values[name][codes[place]]
            for name, codes in self.codes.items()
            if codes[place] != _NONE
        }


def no_such_attribute(name: str, names: Sequence[str]) -> UsageError:
    """The error for a filter by an attribute that no item has, where items have `names`."""
    return UsageError(f"no item has the attribute {name[:80]!r}; there are {', '.join(names)[:500]}.")


class Columns:
    """The attributes of `n` items by row. Not safe for a write beside reads: the replica's lock is.

    Of a shard its rows, as it counts them; an attribute that none of them has may be one that rows of another shard have.
    """

    def __init__(self, n: int, shard: Shard = WHOLE) -> None:
        self._n = self.known = n
        self.shard = shard
        # Rows from `known` on came after the loading: a plan may be the first that says what they are.
        self._codes: dict[str, npt.NDArray[np.int32]] = {}
        self._values: dict[str, dict[str, int]] = {}
        self._texts: dict[str, list[str]] = {}
        self._column(LABEL)

    def __len__(self) -> int:
        return self._n

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes there are, in the order of the alphabet."""
        return tuple(sorted(self._codes))

    @property
    def nbytes(self) -> int:
        """Bytes of the columns, without the dictionaries of values."""
        return sum(codes.nbytes for codes in self._codes.values())

    def _column(self, name: str) -> npt.NDArray[np.int32]:
        if name not in self._codes:
            self._codes[name] = np.full(self._n, _NONE, np.int32)
            self._values[name], self._texts[name] = {}, []
        return self._codes[name]

    def grow(self, n: int) -> None:
        """Hold `n` rows; the new ones have no attribute until they are put."""
        if n > self._n:
            for name, codes in self._codes.items():
                self._codes[name] = np.append(codes, np.full(n - self._n, _NONE, np.int32))
            self._n = n

    def put(
        self, rows: Rows, contents: Sequence[Mapping[str, str]], which: npt.NDArray[np.intp] | None = None
    ) -> None:
        """Give rows (m,) the attributes of `contents`, and no others.

        Args:
            which: (m,) the place in `contents` of each row's attributes; None: one after the other.
        """
        self.drop(rows)
        which = np.arange(len(rows)) if which is None else which
        for name in {name for content in contents for name in content}:
            codes, values = self._column(name), self._values[name]
            of_contents = np.full(len(contents), _NONE, np.int32)
            for place, content in enumerate(contents):
                if name in content:
                    code = values.setdefault(content[name], len(values))
                    if code == len(self._texts[name]):
                        self._texts[name].append(content[name])
                    of_contents[place] = code
            codes[rows] = of_contents[which]

    def arrays(self) -> tuple[dict[str, list[str]], npt.NDArray[np.int32]]:
        """What `of_arrays` reads: attribute → its values by code, and the codes (attributes, n), copies."""
        codes = list(self._codes.values())
        return (
            {name: list(values) for name, values in self._values.items()},
            np.stack(codes),
        )

    @classmethod
    def of_arrays(cls, values: Mapping[str, Sequence[str]], codes: npt.NDArray[np.int32]) -> Columns:
        """The columns that gave these."""
        columns = cls(codes.shape[1])
        for place, name in enumerate(values):
            columns._codes[name] = np.array(codes[place])
            columns._values[name] = {value: code for code, value in enumerate(values[name])}
            columns._texts[name] = list(values[name])
        return columns

    def drop(self, rows: Rows) -> None:
        """These rows have no attribute from now on."""
        for codes in self._codes.values():
            codes[rows] = _NONE

    def of_row(self, row: int) -> dict[str, str]:
        """The attributes of one row, the label too."""
        return Picked(self._codes, self._texts).of((row,))

    def pick(self, rows: Rows) -> Picked:
        """What `Picked.of` tells of rows, of any shape and at least 0, the label apart: a hit has it anyway."""
        codes = {name: codes[rows] for name, codes in self._codes.items() if name != LABEL}
        return Picked(codes, {name: self._texts[name] for name in codes})

    def mask(self, where: Mapping[str, Sequence[str]]) -> Mask:
        """(n,) bool: the rows that have, of every attribute named, one of the values given.

        Raises:
            UsageError: an attribute that no item has.
        """
        mask: Mask | None = None
        for name, wanted in where.items():
            if name not in self._codes:
                if self.shard.whole:
                    raise no_such_attribute(name, self.names)
                return np.zeros(self._n, bool)
            codes = [self._values[name][value] for value in wanted if value in self._values[name]]
            column = self._codes[name]
            found: Mask = column == codes[0] if len(codes) == 1 else np.isin(column, codes)
            mask = found if mask is None else mask & found
        return np.ones(self._n, bool) if mask is None else mask


def load_columns(
    connection: Connection, gallery_id: int, version: Rows, seq: int, shard: Shard = WHOLE
) -> Columns:
    """The attributes of a gallery's items as they were served at a place of the log.

    Args:
        version: (n,) int64, the rollout each row's vector comes from at that place.
        seq: the place.
        shard: whose rows these are.
    """
    columns = Columns(0, shard)
    learn(connection, gallery_id, columns, len(version))
    put_changes(connection, gallery_id, columns, version, seq)
    return columns


def learn(connection: Connection, gallery_id: int, columns: Columns, n: int) -> None:
    """Read what the items of the rows up to `n` were before any change, as far as the columns do not know them."""
    shard = columns.shard
    # As the gallery counts rows: from `end` on they are not held, they came since.
    first, end = (int(shard.rows(np.array(each))) for each in (len(columns), n))
    columns.grow(n)
    columns.known = n
    while first < end:
        page = attribute_queries.first_contents(connection, gallery_id, first, _PAGE)
        rows = np.fromiter((row for row, _ in page), np.int64, len(page))
        held = (rows < end) & shard.holds(rows)
        places: dict[str, int] = {}
        which = [places.setdefault(page[at][1], len(places)) for at in np.flatnonzero(held)]
        contents = [json.loads(text) for text in places]
        columns.put(shard.own(rows[held]), contents, np.array(which, np.intp))
        if len(page) < _PAGE:
            break
        first = page[-1][0] + 1


def put_changes(connection: Connection, gallery_id: int, columns: Columns, version: Rows, seq: int) -> None:
    """Give items that have changed what they are served as; the arguments are those of `load_columns`."""

    def own(row: int) -> int | None:
        rows = columns.shard.own(np.array([row], np.int64))
        return int(rows[0]) if len(rows) and rows[0] < len(version) else None

    def version_of(row: int) -> int | None:
        return None if (place := own(row)) is None else int(version[place])

    found = dict(_changed(connection, gallery_id, seq, version_of))
    changed = {place: content for row, content in found.items() if (place := own(row)) is not None}
    put(columns, np.fromiter(changed, np.int64, len(changed)), changed)


def attributes_of(
    connection: Connection, gallery_id: int, versions: Mapping[int, int | None], seq: int
) -> dict[int, dict[str, str]]:
    """The attributes of a few items, without the label, as `load_columns` has them for all; no column is held.

    Args:
        versions: row → the rollout its vector comes from at the place `seq` of the log; None: it has none, and is as it is now.
    """
    known = attribute_queries.contents_of_rows(connection, gallery_id, list(versions))
    found = {row: now if versions[row] is None else first for row, first, now in known}
    found |= dict(_changed(connection, gallery_id, seq, versions.get))
    return {
        row: {name: value for name, value in found.get(row, {}).items() if name != LABEL} for row in versions
    }


def _changed(
    connection: Connection, gallery_id: int, seq: int, version_of: Callable[[int], int | None]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(row, attributes) of those whose vector is of a content that had changed before."""
    for rollout, row, content in chain(
        attribute_queries.planned_contents(connection, gallery_id),
        attribute_queries.committed_late_contents(connection, gallery_id, seq),
    ):
        if version_of(row) == rollout:
            yield row, content


def contents_of_batch(
    connection: Connection, rollout: RolloutRow, entry: LogEntry, rows: Rows, known: int, shard: Shard = WHOLE
) -> dict[int, Mapping[str, str]]:
    """The attributes that a committed batch brings with its vectors, by row: of those items that have others since.

    Args:
        rows: what of the batch is the shard's; as the shard counts them, like the rows of the answer.
        known: rows from here on came after the attributes were loaded.
    """
    named = dict(zip(shard.rows(rows).tolist(), rows.tolist(), strict=True))
    found: Contents
    if entry.first_rank >= rollout.plan_items:
        found = attribute_queries.contents_of_late(connection, rollout.id, entry.first_rank, entry.n)
    else:
        first_new = int(shard.rows(np.array(known)))
        found = attribute_queries.contents_of_planned(connection, rollout, list(named), first_new)
    return {named[row]: content for row, content in found if row in named}


def put(columns: Columns, rows: Rows, contents: Mapping[int, Mapping[str, str]]) -> None:
    """Give those of the rows that have a content theirs."""
    chosen = [row for row in rows.tolist() if row in contents]
    if chosen:
        columns.put(np.array(chosen, np.int64), [contents[row] for row in chosen])
