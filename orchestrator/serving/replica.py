"""A replica answers searches from one consistent mixture and follows the gallery's log.

It can die at any time: what it holds is a function of the ledger and the extents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.errors import ConflictError, HotrefreshError
from orchestrator.failpoints import reach
from orchestrator.index import VectorIndex, make_index
from orchestrator.ledger.database import snapshot, transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ItemRow, LogEntry, ModelRow, RolloutRow
from orchestrator.serving.lock import WriterPreferringLock
from orchestrator.serving.matrix import load_matrix, read_batch
from orchestrator.serving.queries import QueryPath, mapped, query_path, serving_path

# Rows applied under one hold of the lock: a search waits for at most this copy.
SLICE = 1024
# After a fault the log is asked for again this much later.
RETRY_S = 0.5


@dataclass(frozen=True)
class Hit:
    """One answer: which item, how near, and in which version it is stored."""

    row: int
    key: str
    uri: str
    label: str | None
    score: float
    rollout_id: int


@dataclass(frozen=True)
class Answer:
    """What a search returns: the hits, the model that encoded the query, the place of the log it was answered at."""

    hits: tuple[Hit, ...]
    model: str
    seq: int
    coverage_ratio: float
    rollout_id: int | None


@dataclass
class _Served:
    index: VectorIndex
    version: npt.NDArray[np.int64]
    path: QueryPath
    rollout_id: int | None


class Replica:
    """Follows one gallery. `catch_up` applies what is new; `follow` does so in a thread until `close`."""

    observer: Callable[[Connection, LogEntry | None], bool] | None = None
    """Sees each log entry before it is applied, and None before a gallery that was loaded anew is served. True: instead of
    applying the entry, load everything anew."""

    def __init__(self, context: Context, gallery: GalleryRow, backend: str = "faiss-flat") -> None:
        self._context = context
        self.gallery = gallery
        self._backend = backend
        self._lock = WriterPreferringLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: HotrefreshError | None = None
        self.seq = 0
        self._served: _Served
        self._reload()

    @property
    def model(self) -> ModelRow:
        """The model that queries are encoded with."""
        return self._served.path.model

    @property
    def path(self) -> QueryPath:
        """What makes a query's vector: the model and, under a query adapter, that adapter."""
        return self._served.path

    @property
    def rollout_id(self) -> int | None:
        """The rollout that serves."""
        return self._served.rollout_id

    def _reload(self) -> None:
        with snapshot(self._context.engine) as connection:
            serving = rollout_queries.serving_now(connection, self.gallery.id)
            if serving is None:
                raise ConflictError(
                    f"gallery {self.gallery.name!r} has no embeddings yet; run "
                    f"`hotrefresh gallery embed {self.gallery.name} --model NAME` first."
                )
            path = serving_path(connection, serving)
            matrix = load_matrix(connection, self.gallery.id)
            if self.observer is not None:
                self.observer(connection, None)
        served = _Served(make_index(self._backend, matrix.vectors), matrix.version, path, serving.rollout_id)
        with self._lock.write():
            self._served, self.seq = served, matrix.seq

    def snapshot(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
        """What is served at one place of the log: vectors (n, dim), version (n,), both copies, and the place."""
        with self._lock.read():
            return self._served.index.vectors().copy(), self._served.version.copy(), self.seq

    def catch_up(self) -> int:
        """Apply every log entry that is new; returns how many."""
        applied = 0
        while True:
            with transaction(self._context.engine) as connection:
                entries = log_queries.log_after(connection, self.gallery.id, self.seq, 256)
                for entry in entries:
                    if self._apply(connection, entry):
                        return applied + 1  # reloaded: the entries behind are already in
                    applied += 1
            if len(entries) < 256:
                return applied

    def _apply(self, connection: Connection, entry: LogEntry) -> bool:
        """Apply one entry; True when the whole gallery was loaded anew."""
        if self.observer is not None and self.observer(connection, entry):
            self._reload()
            return True
        if entry.kind == "deleted":
            self._grow(max(entry.rows) + 1)
            self._empty(np.array(entry.rows, np.int64))
            self.seq = entry.seq
            return False
        assert entry.rollout_id is not None
        rollout = rollout_queries.rollout_by_id(connection, entry.rollout_id)
        assert rollout is not None
        if entry.kind == "batch":
            self._apply_batch(connection, rollout, entry)
            self.seq = entry.seq
            return False
        if entry.kind == "deployed" and not rollout.how.lifts and rollout.kind == "upgrade":
            # Nothing stored changes: only what makes queries' vectors. This is why the answer comes in seconds.
            path = query_path(connection, rollout.to_model_id, rollout)
            with self._lock.write():
                self._served.path, self._served.rollout_id, self.seq = path, rollout.id, entry.seq
            return False
        if entry.kind == "traffic" or (entry.kind == "finalized" and rollout.kind == "upgrade"):
            self.seq = entry.seq
            return False
        self._reload()
        return True

    def _apply_batch(self, connection: Connection, rollout: RolloutRow, entry: LogEntry) -> None:
        batch = read_batch(connection, rollout, entry)
        reach("replica_read")
        self._grow(int(max(batch.rows.max(initial=-1), batch.emptied.max(initial=-1))) + 1)
        for at in range(0, len(batch.rows), SLICE):
            rows = batch.rows[at : at + SLICE]
            with self._lock.write():
                self._served.index.replace(rows, batch.vectors[at : at + SLICE])
                self._served.version[rows] = rollout.id
            reach("replica_mid_apply")
        self._empty(batch.emptied)
        reach("replica_applied")

    def _grow(self, n: int) -> None:
        """Make room for rows that came late."""
        if n > len(self._served.version):
            with self._lock.write():
                self._served.index.grow(n)
                self._served.version = np.append(
                    self._served.version, np.zeros(n - len(self._served.version), np.int64)
                )

    def _empty(self, rows: npt.NDArray[np.int64]) -> None:
        """These rows have no vector from now on."""
        if len(rows):
            with self._lock.write():
                vectors = np.zeros((len(rows), self._served.index.vectors().shape[1]), np.float32)
                self._served.index.replace(rows, vectors)
                self._served.version[rows] = 0

    def search(self, queries: Sequence[Any], k: int = 10) -> list[Answer]:
        """Answer queries (decoded images or texts), each from one consistent mixture.

        The query is encoded outside the lock; when the model or its adapter was switched meanwhile, it is encoded again.
        """
        while True:
            path = self._served.path
            encoder = self._context.encoder(path.model)
            prepared = [encoder.preprocess(query) for query in queries]
            vectors = mapped(self._context, path, encoder.encode(prepared))
            with self._lock.read():
                served = self._served
                if served.path.ids != path.ids:
                    continue
                # Rows without a vector score 0 and are left out afterwards: as many more are asked for.
                empty = int(np.count_nonzero(served.version == 0))
                scores, rows = served.index.search(vectors, min(k + empty, max(1, len(served.version))))
                versions = np.where(rows >= 0, served.version[rows], 0)
                seq, rollout_id = self.seq, served.rollout_id
                coverage = float(np.mean(served.version == rollout_id)) if len(served.version) else 0.0
            return self._answers(path.model.name, scores, rows, versions, k, seq, coverage, rollout_id)

    def _answers(
        self,
        model: str,
        scores: Any,
        rows: Any,
        versions: Any,
        k: int,
        seq: int,
        coverage: float,
        rollout_id: int | None,
    ) -> list[Answer]:
        items = self.items(sorted({int(row) for row in rows.ravel() if row >= 0}))
        return [
            Answer(
                tuple(
                    Hit(int(r), items[int(r)].key, items[int(r)].uri, items[int(r)].label, float(s), int(v))
                    for s, r, v in zip(scores[q], rows[q], versions[q], strict=True)
                    if r >= 0 and v > 0 and int(r) in items
                )[:k],
                model,
                seq,
                coverage,
                rollout_id,
            )
            for q in range(len(rows))
        ]

    def items(self, rows: Sequence[int]) -> dict[int, ItemRow]:
        """What the ledger knows of these rows, by row; rows that it does not know are left out."""
        with transaction(self._context.engine) as connection:
            return {i.row: i for i in gallery_queries.items_of_rows(connection, self.gallery.id, rows)}

    def follow(self, interval_s: float = 0.05, changed: Callable[[], None] | None = None) -> None:
        """Follow the log in a thread. A fault is kept in `error`, and tried again: what is served stays served."""

        def run() -> None:
            while not self._stop.wait(interval_s if self.error is None else max(interval_s, RETRY_S)):
                try:
                    if self.catch_up() and changed is not None:
                        changed()
                    self.error = None
                except HotrefreshError as error:
                    self.error = error
                except Exception as error:  # noqa: BLE001 - a follower that ends would serve old vectors for ever
                    self.error = HotrefreshError(
                        f"the log cannot be followed: {type(error).__name__}: {error}."
                    )

        self._thread = threading.Thread(target=run, name=f"replica-{self.gallery.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
