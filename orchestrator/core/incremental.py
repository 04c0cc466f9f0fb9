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
from orchestrator.core.metrics import insert, similarities, top_keys

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_BLOCK_SCORES = 2**22


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
        for at in range(0, len(self._queries), max(1, _BLOCK_SCORES // len(rows))):
            self._insert(at, min(len(self._queries), at + max(1, _BLOCK_SCORES // len(rows))), rows, vectors)
        lacking = np.flatnonzero(self._buffer[:, self.k - 1] == keys.EMPTY)
        self._search(lacking)
        self.searched_again += len(lacking)
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

    def _insert(self, start: int, stop: int, rows: I64, vectors: F32) -> None:
        scores = similarities(self._queries[start:stop], vectors)
        tau = self._tau[start:stop]
        # The scores alone first (a few of millions pass), then the keys, which know ties. NaN is EMPTY: all may enter.
        queries, columns = np.divmod(np.flatnonzero(~(scores < keys.scores_of(tau)[:, None])), len(rows))
        new = keys.pack(scores[queries, columns], rows[columns])
        better = new < tau[queries]
        dropped = insert(self._buffer[start:stop], queries[better], new[better])
        np.minimum(tau, dropped, out=tau)

    def _search(self, queries: I64) -> None:
        """Fill the buffers of `queries` from the whole gallery."""
        if not len(queries) or not self._size:
            return
        found = top_keys(self._queries[queries], self._gallery, self._size + 1)
        self._buffer[queries] = found[:, : self._size]
        self._tau[queries] = found[:, self._size] if found.shape[1] > self._size else keys.EMPTY
