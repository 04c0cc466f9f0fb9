"""An index that is made anew in the background and swapped in when it holds what the old one holds."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from orchestrator.index import Lock, Mask, Rows, VectorIndex, Vectors

_log = logging.getLogger("hotrefresh.index")
# After a rebuild that failed, the next one is tried this much later.
RETRY_S = 60.0
# Writes that came meanwhile are given to the new index so often without stopping anybody; the rest under the lock.
_ROUNDS = 8


class Rebuildable(VectorIndex, Protocol):
    """An index whose answers get worse as its rows are replaced."""

    def stale(self) -> bool:
        """Whether a new one is worth making. Asked after every write, so it is quick."""

    def rebuilt(self, vectors: Vectors) -> Rebuildable:
        """A new one of `vectors` (n, dim); this one is not touched and goes on answering."""


class Shadowed:
    """Holds one index, and for a while a second one in the making.

    What its owner must do is what the protocol asks anyway: search under `lock.read()`, write under `lock.write()`.
    A write that finds the index stale starts a thread. It copies the vectors, notes every write from then on, trains and
    fills the new index with no lock held, gives it the noted writes, and swaps under `lock.write()` after the last of
    them: the new index holds what the old one holds at that moment. In memory are then both, and a copy.
    """

    def __init__(self, index: Rebuildable, lock: Lock) -> None:
        self._index = index
        self._lock = lock
        self.exact = index.exact
        self.dim = index.dim
        self.swaps = 0
        """How often a new index was swapped in."""
        self._missed: list[tuple[Rows, Vectors] | int] | None = None
        self._thread: threading.Thread | None = None
        self._retry_at = 0.0
        self._closed = False

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        self._index.replace(rows, vectors)
        if self._missed is not None:
            self._missed.append((rows.copy(), vectors.copy()))
        elif time.monotonic() >= self._retry_at and self._index.stale():
            self._missed = []
            self._thread = threading.Thread(target=self._rebuild, name="index-rebuild", daemon=True)
            self._thread.start()

    def grow(self, n: int) -> None:
        self._index.grow(n)
        if self._missed is not None:
            self._missed.append(n)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        return self._index.search(queries, k, allowed)

    def vectors(self) -> Vectors:
        return self._index.vectors()

    def read(self, rows: Rows) -> Vectors | None:
        return self._index.read(rows)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the rebuild that is under way, if there is one; whether none is any more. Hold no lock."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def close(self) -> None:
        """Hold no lock: a rebuild under way is waited for, and what it made is thrown away."""
        self._closed = True
        self.wait()
        self._index.close()

    def _rebuild(self) -> None:
        try:
            self._swap()
        except Exception as error:  # noqa: BLE001 - the old index goes on answering; a thread's end would go unseen
            self._retry_at = time.monotonic() + RETRY_S
            _log.error(
                "the index could not be made anew, the old one goes on answering: %s: %s",
                type(error).__name__,
                error,
            )
            with self._lock.write():
                self._missed = None

    def _swap(self) -> None:
        with self._lock.read():  # nobody writes: the copy and the beginning of the notes are one moment
            vectors = self._index.vectors().copy()
            self._missed = []
        fresh = self._index.rebuilt(vectors)
        del vectors
        for _ in range(_ROUNDS):
            with self._lock.read():
                missed, self._missed = self._missed, []
            if not missed:
                break
            _apply(fresh, missed)
        with self._lock.write():
            if not self._closed:
                _apply(fresh, self._missed)
                self._index, fresh = fresh, self._index
                self.swaps += 1
            self._missed = None
        fresh.close()


def _apply(index: VectorIndex, writes: list[tuple[Rows, Vectors] | int]) -> None:
    for write in writes:
        if isinstance(write, int):
            index.grow(write)
        else:
            index.replace(*write)
