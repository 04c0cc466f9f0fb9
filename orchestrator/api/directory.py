"""A gallery's keys, URIs and labels in memory: what hits are named by while the ledger is away."""

from __future__ import annotations

import hashlib
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.core.shards import Shard
from orchestrator.ledger.rows import ItemRow

# No key, URI or label holds it: PostgreSQL refuses NUL in a text.
_BETWEEN = "\0"


class Directory:
    """Items by row and by key: 40 bytes an item beside its texts, not an object each. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = array("q")
        self._ends = array("q", [0])
        self._texts = bytearray()
        self._digests = array("Q")
        # Places by digest, and the digests in that order: made when a key is first asked for.
        self._order: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._sorted: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        # What came, changed or went after the loading.
        self._late: dict[int, ItemRow] = {}
        self._late_rows: dict[str, int] = {}
        self._gone: set[int] = set()

    def extend(self, items: Iterable[ItemRow]) -> None:
        """Add items, rows rising and all behind those that are there."""
        with self._lock:
            for item in items:
                fields = [item.key, item.uri] + ([] if item.label is None else [item.label])
                self._texts += _BETWEEN.join(fields).encode()
                self._rows.append(item.row)
                self._ends.append(len(self._texts))
                self._digests.append(_digest(item.key))

    def arrays(self, n: int) -> dict[str, npt.NDArray[Any]]:
        """What `of_arrays` reads, of the rows before `n`: as they were loaded, whatever came, changed or went since.

        No copies and no lock: what was loaded does not change any more.
        """
        place = bisect_left(self._rows, n)
        return {
            "rows": np.asarray(self._rows)[:place],
            "ends": np.asarray(self._ends)[: place + 1],
            "texts": np.asarray(memoryview(self._texts))[: self._ends[place]],
            "digests": np.asarray(self._digests)[:place],
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Directory:
        """The directory that gave these."""
        directory = cls()
        for name, held in (
            ("rows", directory._rows),
            ("ends", directory._ends),
            ("digests", directory._digests),
        ):
            del held[:]
            held.frombytes(arrays[name].tobytes())
        directory._texts = bytearray(arrays["texts"].tobytes())
        return directory

    def put(self, items: Iterable[ItemRow]) -> None:
        """Items that were added or changed after the loading."""
        with self._lock:
            for item in items:
                self._late[item.row] = item
                self._late_rows[item.key] = item.row

    def drop(self, rows: Iterable[int]) -> None:
        """Items that were deleted."""
        with self._lock:
            self._gone.update(rows)

    def of_rows(self, rows: Iterable[int]) -> dict[int, ItemRow]:
        """The items of these rows; unknown and deleted ones are left out."""
        with self._lock:
            found = ((row, self._of_row(row)) for row in rows)
            return {row: item for row, item in found if item is not None}

    def _of_row(self, row: int) -> ItemRow | None:
        if row in self._gone:
            return None
        if row in self._late:
            return self._late[row]
        at = bisect_left(self._rows, row)
        return self._item(at) if at < len(self._rows) and self._rows[at] == row else None

    def of_key(self, key: str) -> ItemRow | None:
        """The item of this key; None where there is none, or none any more."""
        with self._lock:
            if key in self._late_rows and (item := self._of_row(self._late_rows[key])) is not None:
                return item
            if len(self._order) != len(self._digests):
                digests = np.array(self._digests, np.uint64)
                self._order = np.argsort(digests, kind="stable")
                self._sorted = digests[self._order]
            wanted = np.uint64(_digest(key))
            first, last = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
            same = (self._of_row(self._rows[int(at)]) for at in self._order[first:last])
            return next((item for item in same if item is not None and item.key == key), None)

    def _item(self, at: int) -> ItemRow:
        key, uri, *label = self._texts[self._ends[at] : self._ends[at + 1]].decode().split(_BETWEEN)
        return ItemRow(self._rows[at], key, uri, label[0] if label else None)


def items_of(shard: Shard, items: Sequence[ItemRow]) -> Sequence[ItemRow]:
    """Those of a shard."""
    if shard.whole:
        return items
    held = shard.holds(np.fromiter((item.row for item in items), np.int64, len(items)))
    return [items[at] for at in np.flatnonzero(held).tolist()]


def _digest(key: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )
