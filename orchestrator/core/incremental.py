"""Exact top-k of every query while rows of the gallery are replaced, without searching again.

Per query a buffer holds the K' best rows known, and `tau` the best key known outside it; everything outside is no
better than tau. For a batch of replaced rows: drop them from the buffers, score the new vectors in one matrix product,
insert every score better than tau; on overflow keep K' and move tau to the best that was dropped. While a buffer holds
at least k rows its k best are exact; otherwise only that query is searched in full. Keys hold score and row, so ties go
to the lower row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.core import keys
from orchestrator.core.metrics import QUERY_BLOCK, insert, pairs_above, top_keys

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_NEWCOMERS = 2**20
"""Keys that wait to be merged into the buffers: 8 MB."""
_SEARCHED_TOGETHER = 32


class IncrementalTopK:
    """The exact `k` best rows of each query in a gallery whose rows are replaced batch by batch.

    Args:
        queries: (Q, d) float32, finite.
        gallery: (N, d) float32, kept by reference: `apply` writes the new vectors into it.
        k: rows wanted; `min(k, N)` are given.
        buffer: K', rows remembered per query, at least k; 5 to 10 times k leaves next to nothing to search again.

    Memory: 8 bytes x Q x K'. Raises ValueError when `buffer < k`.
    """

    def __init__(self, queries: F32, gallery: F32, k: int, buffer: int | None = None) -> None:
        size = max(10 * k, 32) if buffer is None else buffer
        if not 1 <= k <= size:
            raise ValueError(f"the buffer ({size}) must hold at least the {k} rows that are asked for")
        self.k = min(k, len(gallery))
        self._queries = queries
        self._gallery = gallery
        self._size = min(size, len(gallery))
        self._buffer = np.full((len(queries), self._size), keys.EMPTY, np.uint64)
        self._tau = np.full(len(queries), keys.EMPTY, np.uint64)
        # One place more than rows: a lookup of EMPTY is clipped to it.
        self._replaced = np.zeros(len(gallery) + 1, np.bool_)
        self._search(np.arange(len(queries)))
        self.searched_again = 0
        """Queries that had to be searched in full since the start."""

    def top(self, k: int | None = None) -> tuple[F32, I64]:
        """Scores (Q, k) float32 and rows (Q, k) int64, best first; `k` is at most the one of the constructor."""
        k = self.k if k is None else min(k, self.k)
        best = self._buffer[:, :k]
        return keys.scores_of(best), keys.rows_of(best).astype(np.int64)

    def apply(self, rows: npt.NDArray[np.integer], vectors: F32) -> I64:
        """Replace `rows` (m,) of the gallery by `vectors` (m, d); of a row given twice the last vector counts.

        Returns the queries whose k best rows or scores changed, rising, int64. Raises ValueError for a row outside the
        gallery or vectors of another shape; nothing is changed then.
        """
        rows, vectors = self._checked(rows, vectors)
        if not len(rows):
            return np.empty(0, np.int64)
        before = self._buffer[:, : self.k].copy()
        self._gallery[rows] = vectors
        self._drop(rows)
        self._insert(rows, vectors)
        if (again := self._lacking()).any():
            self._search(np.flatnonzero(again))
            self.searched_again += int(again.sum())
        return np.flatnonzero((before != self._buffer[:, : self.k]).any(axis=1))

    def _checked(self, rows: npt.NDArray[np.integer], vectors: F32) -> tuple[I64, F32]:
        if vectors.shape != (len(rows), self._gallery.shape[1]):
            raise ValueError(
                f"{len(rows)} rows need vectors {(len(rows), self._gallery.shape[1])}, not {vectors.shape}"
            )
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self._gallery):
            raise ValueError(f"a row lies outside the gallery of {len(self._gallery)}")
        unique, last = np.unique(np.asarray(rows, np.int64)[::-1], return_index=True)
        return unique, np.ascontiguousarray(vectors[len(rows) - 1 - last], np.float32)

    def _drop(self, rows: I64) -> None:
        self._replaced[rows] = True
        held = np.take(self._replaced, keys.rows_of(self._buffer), mode="clip")
        self._replaced[rows] = False
        touched = np.flatnonzero(held.any(axis=1))
        kept = self._buffer[touched]
        kept[held[touched]] = keys.EMPTY
        kept.sort(axis=1)
        self._buffer[touched] = kept

    def _insert(self, rows: I64, vectors: F32) -> None:
        limit = keys.scores_of(self._tau)
        waiting: list[tuple[I64, keys.Keys]] = []
        held = 0
        for at in range(0, len(self._queries), QUERY_BLOCK):
            some = slice(at, at + QUERY_BLOCK)
            # The scores alone first (a few of thousands pass), then the keys, which know ties.
            lines, columns, scores = pairs_above(self._queries[some], vectors, limit[some], ties=True)
            queries, new = lines + at, keys.pack(scores, rows[columns])
            better = new < self._tau[queries]
            waiting.append((queries[better], new[better]))
            held += len(waiting[-1][0])
            if held > _NEWCOMERS:
                self._merge(waiting)
                waiting, held = [], 0
        self._merge(waiting)

    def _merge(self, waiting: list[tuple[I64, keys.Keys]]) -> None:
        """Take newcomers, by rising queries, into the buffers; tau rises to the best that found no room."""
        if waiting:
            queries, new = (np.concatenate(each) for each in zip(*waiting, strict=True))
            np.minimum(self._tau, insert(self._buffer, queries, new), out=self._tau)

    def _lacking(self) -> npt.NDArray[np.bool_]:
        """(Q,) bool: queries with fewer than k rows left, and along with them the next that would run dry.

        A search reads the whole gallery, and costs next to nothing more for a few queries than for one.
        """
        lacking: npt.NDArray[np.bool_] = self._buffer[:, self.k - 1] == keys.EMPTY
        spare = -int(lacking.sum()) % _SEARCHED_TOGETHER
        if spare:
            held = (self._buffer != keys.EMPTY).sum(axis=1)
            held[lacking] = self._size
            emptiest = np.argsort(held, kind="stable")[:spare]
            lacking[emptiest[held[emptiest] < self._size // 2]] = True
        return lacking

    def _search(self, queries: I64) -> None:
        """Fill the buffers of `queries` from the whole gallery."""
        if not len(queries) or not self._size:
            return
        found = top_keys(self._queries[queries], self._gallery, self._size + 1)
        self._buffer[queries] = found[:, : self._size]
        self._tau[queries] = found[:, self._size] if found.shape[1] > self._size else keys.EMPTY
