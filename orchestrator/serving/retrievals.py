"""Counting what searches return, beside the searches: in memory, and every few seconds into the ledger.

A process that dies loses what it has not written, at most `FLUSH_S` seconds of counts. That is fine for what they are used
for: which items come first. While the ledger is away, counts of at most `MOST_ITEMS` items are kept; those of further items are
dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from orchestrator.errors import HotrefreshError

FLUSH_S = 5.0
MOST_ITEMS = 1_000_000

Write = Callable[[int, dict[int, int]], None]
"""Adds counts (row → retrievals) of a gallery to the ledger."""


class RetrievalCounter:
    """Counts of this process. Safe for many threads."""

    def __init__(self, write: Write, *, flush_s: float | None = None, most_items: int = MOST_ITEMS) -> None:
        self._write = write
        self._flush_s = FLUSH_S if flush_s is None else flush_s
        self._most_items = most_items
        self._counts: dict[int, dict[int, int]] = {}
        self._items = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retrievals", daemon=True)
        self.dropped = 0
        """Retrievals that were not counted because too many items waited."""

    def start(self) -> None:
        """Write every few seconds, until `close`."""
        self._thread.start()

    def count(self, gallery_id: int, rows: Iterable[int]) -> None:
        """These rows were returned once more."""
        with self._lock:
            counts = self._counts.setdefault(gallery_id, {})
            for row in rows:
                if row in counts:
                    counts[row] += 1
                elif self._items < self._most_items:
                    counts[row] = 1
                    self._items += 1
                else:
                    self.dropped += 1

    def flush(self) -> None:
        """Write what was counted since the last time, a transaction a gallery; what cannot be written is kept.

        Raises:
            HotrefreshError: the ledger is away, or refused.
        """
        with self._lock:
            taken, self._counts, self._items = self._counts, {}, 0
        while taken:
            gallery_id, counts = next(iter(taken.items()))
            try:
                if counts:
                    self._write(gallery_id, counts)
            except BaseException:
                self._keep(taken)
                raise
            del taken[gallery_id]

    def _keep(self, taken: dict[int, dict[int, int]]) -> None:
        with self._lock:
            for gallery_id, counts in taken.items():
                now = self._counts.setdefault(gallery_id, {})
                for row, count in counts.items():
                    self._items += row not in now
                    now[row] = now.get(row, 0) + count

    def _run(self) -> None:
        while not self._stop.wait(self._flush_s):
            self._try()
        self._try()

    def _try(self) -> None:
        try:
            self.flush()
        except HotrefreshError:
            pass  # tried again in a moment; searches go on
        except Exception:  # noqa: BLE001 — a gallery that is gone, say: its counts are of no use to anybody
            with self._lock:
                self._counts, self._items = {}, 0

    def close(self) -> None:
        """Write what is left, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
