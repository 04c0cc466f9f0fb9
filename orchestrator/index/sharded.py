"""Row ranges of a gallery, each an index of its own, searched side by side and merged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from orchestrator.core.merge import merge_top_k
from orchestrator.index import Mask, Rows, VectorIndex, Vectors


class Sharded:
    """Shard i holds the rows from `starts[i]` up to the next start; the last one takes all that come late.

    As exact as its shards: a query's k best are among the k best of every range (`orchestrator.core.merge`).
    """

    def __init__(self, make: Callable[[Vectors], VectorIndex], vectors: Vectors, shards: int) -> None:
        """`make` makes the index of one range; ranges differ by one row at most."""
        bounds = np.linspace(0, len(vectors), min(shards, len(vectors)) + 1).astype(np.int64)
        self._starts = bounds[:-1]
        self._n = len(vectors)
        self.dim = vectors.shape[1]
        self._shards: list[VectorIndex] = []
        try:
            for start, stop in pairwise(bounds):
                self._shards.append(make(vectors[start:stop]))
        except BaseException:
            for shard in self._shards:
                shard.close()
            raise
        self.exact = all(shard.exact for shard in self._shards)
        self._pool = ThreadPoolExecutor(len(self._shards), thread_name_prefix="shard")

    @property
    def lost(self) -> bool:
        """Whether a shard lost what it held."""
        return any(getattr(shard, "lost", False) for shard in self._shards)

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        rows = np.asarray(rows, np.int64)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners):
            here = owners == owner
            self._shards[owner].replace(rows[here] - self._starts[owner], vectors[here])

    def grow(self, n: int) -> None:
        if n > self._n:
            self._shards[-1].grow(n - int(self._starts[-1]))
            self._n = n

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        stops = [*self._starts[1:], self._n]

        def of(place: int) -> tuple[Vectors, Rows]:
            part = None if allowed is None else allowed[self._starts[place] : stops[place]]
            scores, rows = self._shards[place].search(queries, k, part)
            return scores, np.where(rows >= 0, rows + self._starts[place], -1)

        found = list(self._pool.map(of, range(len(self._shards))))
        return merge_top_k([scores for scores, _ in found], [rows for _, rows in found], k)

    def vectors(self) -> Vectors:
        return np.concatenate([shard.vectors() for shard in self._shards])

    def read(self, rows: Rows) -> Vectors | None:
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), self.dim), np.float32)
        for owner, shard in enumerate(self._shards):
            here = owners == owner
            held = shard.read(rows[here] - self._starts[owner])
            if held is None:
                return None
            found[here] = held
        return found

    def close(self) -> None:
        self._pool.shutdown()
        for shard in self._shards:
            shard.close()
