"""A replica answers searches from one consistent mixture and follows the gallery's log.

It can die at any time: what it holds is a function of the ledger and the extents.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.shards import WHOLE, Shard
from orchestrator.errors import ConflictError, HotrefreshError, NotCertifiedError, StalePathError
from orchestrator.failpoints import reach
from orchestrator.index import Rows, VectorIndex
from orchestrator.ledger.database import snapshot, transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ItemRow, LogEntry, ModelRow, RolloutRow
from orchestrator.serving.answers import Answer, Found, checked_queries, stale
from orchestrator.serving.backend import index_of, outgrown
from orchestrator.serving.calibration import batch_rows, fitting
from orchestrator.serving.certified import uncertified
from orchestrator.serving.filters import Columns, Where, checked, contents_of_batch, load_columns, put
from orchestrator.serving.guard import Guarded, GuardedSearch, RolloutGuard, guard_of
from orchestrator.serving.lock import WriterPreferringLock
from orchestrator.serving.matrix import HOLDS_ALL, GalleryMatrix, read_batch
from orchestrator.serving.queries import QueryPath, load, mapped, query_path, serving_path
from orchestrator.serving.rerank import floats_behind, reranked
from orchestrator.serving.served import Served
from orchestrator.serving.snapshots import laid_out

# Certificates are looked up again after so long, beside whenever other versions are mixed.
CERTIFIED_S = 5.0
# After a fault the log is asked for again this much later.
RETRY_S = 0.5


class Replica:
    """Follows one gallery. `catch_up` applies what is new; `follow` does so in a thread until `close`."""

    observer: Callable[[Connection, LogEntry | None], bool] | None = None
    """Sees each log entry before it is applied, and None before a gallery that was loaded anew is served. True: instead of
    applying the entry, load everything anew."""
    shard: Shard = WHOLE
    """Whose rows are held: what is served counts them as the shard does, and answers name them as the gallery does."""

    def __init__(
        self, context: Context, gallery: GalleryRow, backend: str | None = None, rerank: int | None = None
    ) -> None:
        self._context = context
        self.gallery = gallery
        self._backend = backend or context.settings.index
        self._rerank = context.settings.rerank if rerank is None else rerank
        self._lock = WriterPreferringLock()
        # Held by whoever changes what is served, or needs it to stand still while searches go on.
        self._applying = threading.Lock()
        self._filtered = False
        # The versions whose certificates were looked up, and when.
        self._checked: tuple[frozenset[int], float] = frozenset(), 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: HotrefreshError | None = None
        self.seq = 0
        self._served: Served
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
    def refused(self) -> str | None:
        """Why no search is answered: a pair of models that lacks its certificate; None: searches are answered."""
        return self._served.refused

    @property
    def rollout_id(self) -> int | None:
        """The rollout that serves."""
        return self._served.rollout_id

    @property
    def asked(self) -> tuple[QueryPath, int | None, frozenset[int]]:
        """What is certified before it answers: the path, the rollout that serves, and the versions that are mixed."""
        with self._lock.read():
            return self._served.path, self._served.rollout_id, frozenset(self._served.versions)

    def _reload(self) -> None:
        with snapshot(self._context.engine) as connection:
            serving = rollout_queries.serving_now(connection, self.gallery.id)
            if serving is None:
                raise ConflictError(
                    f"gallery {self.gallery.name!r} has no embeddings yet; run "
                    f"`hotrefresh gallery embed {self.gallery.name} --model NAME` first."
                )
            path = serving_path(connection, serving)
            rollout = rollout_queries.rollout_by_id(connection, serving.rollout_id or 0)
            guard = guard_of(connection, rollout)
            matrix = self._mixture(connection)
            columns = self._columns(connection, matrix.version, matrix.seq) if self._filtered else None
            floats = floats_behind(connection, self.gallery.id, path, self._rerank)
            if self.observer is not None:
                self.observer(connection, None)
        self._load(path, guard)
        index = self._index(matrix)
        served = Served(
            index, matrix.version, path, serving.rollout_id, guard, columns=columns, floats=floats
        )
        with snapshot(self._context.engine) as connection:
            served.refused = self._uncertified(connection, served)
        with self._lock.write():
            old: Served | None = self.__dict__.get("_served")
            self._served, self.seq = served, matrix.seq
        if old is not None:  # nobody searches it any more; a rebuild of it needs the lock to end
            old.index.close()

    def _index(self, matrix: GalleryMatrix) -> VectorIndex:
        return index_of(self._context, self._backend, matrix, self._lock)

    def _mixture(self, connection: Connection) -> GalleryMatrix:
        """The vectors as they are searched; a replica may have them otherwise."""
        return laid_out(connection, self.gallery.id, self.shard)

    def _columns(self, connection: Connection, version: Rows, seq: int) -> Columns:
        """The items' attributes; likewise."""
        return load_columns(connection, self.gallery.id, version, seq, self.shard)

    def _load(self, path: QueryPath, guard: RolloutGuard | None) -> None:
        """Load what a path needs before it serves: until then the one before answers, and no search waits for a model."""
        load(self._context, path)
        if guard is not None:
            load(self._context, guard.path)

    def load_attributes(self) -> None:
        """Read the items' attributes, unless they are there: from now on the log is followed with them."""
        with self._applying:
            self._filtered = True
            if self._served.columns is not None:
                return
            with snapshot(self._context.engine) as connection:
                columns = self._columns(connection, self._served.version, self.seq)
            with self._lock.write():
                self._served.columns = columns

    def snapshot(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
        """What is served at one place of the log: vectors (n, width), version (n,), both copies, and the place.

        `width` is the dim, and one more where scores are calibrated (`serving.calibration`).
        """
        with self._lock.read():
            return self._served.index.vectors().copy(), self._served.version.copy(), self.seq

    def catch_up(self) -> int:
        """Apply every log entry that is new; returns how many."""
        applied = 0
        if getattr(self._served.index, "lost", False):  # its server went away with what it held
            self._reload()
        while True:
            again = False
            with self._applying:
                with transaction(self._context.engine) as connection:
                    entries = log_queries.log_after(connection, self.gallery.id, self.seq, 256)
                    for entry in entries:
                        applied += 1
                        if again := self._apply(connection, entry):
                            break
                    if not again and len(entries) < 256:
                        self._check_certificates(connection)
                if again:
                    # Outside the transaction: the ledger ends one that is idle for as long as this may take.
                    self._reload()
            if again or len(entries) < 256:
                return applied  # after a reload the entries behind are already in

    def _uncertified(self, connection: Connection, served: Served) -> str | None:
        return uncertified(connection, self.gallery.id, served.path, served.rollout_id, served.versions)

    def _check_certificates(self, connection: Connection) -> None:
        """Ask again when the versions that are mixed are others, and now and then: certificates come and go without the log."""
        versions, now = self._served.versions, time.monotonic()
        due = CERTIFIED_S if self._served.refused is None else 0.0
        if versions != self._checked[0] or now - self._checked[1] > due:
            refused = self._uncertified(connection, self._served)
            with self._lock.write():
                self._served.refused = refused
            self._checked = versions, now

    def _apply(self, connection: Connection, entry: LogEntry) -> bool:
        """Apply one entry; True when the whole gallery has to be loaded anew."""
        if self.observer is not None and self.observer(connection, entry):
            return True
        if entry.kind == "deleted":
            self._grow(max(entry.rows) + 1)
            self._empty(self.shard.own(np.array(entry.rows, np.int64)), entry.seq)
            return False
        assert entry.rollout_id is not None
        rollout = rollout_queries.rollout_by_id(connection, entry.rollout_id)
        assert rollout is not None
        if entry.kind == "batch":
            self._apply_batch(connection, rollout, entry)
            return False
        if (
            entry.kind == "deployed"
            and not rollout.how.lifts
            and rollout.kind == "upgrade"
            and not outgrown(connection, self._backend, self._served, rollout)
        ):
            # Nothing stored changes: only what makes queries' vectors. This is why the answer comes in seconds.
            path = query_path(connection, rollout.to_model_id, rollout)
            guard = guard_of(connection, rollout)
            self._load(path, guard)
            refused = uncertified(connection, self.gallery.id, path, rollout.id, self._served.versions)
            with self._lock.write():
                served = self._served
                served.path, served.rollout_id, served.refused = path, rollout.id, refused
                served.guard, self.seq = guard, entry.seq
            return False
        narrower = HOLDS_ALL in rollout.config and self._served.index.dim != self._served.path.codes
        finalized = entry.kind == "finalized" and rollout.kind == "upgrade"
        if entry.kind == "traffic" or (finalized and not narrower):
            self.seq = entry.seq
            return False
        return True

    def _apply_batch(self, connection: Connection, rollout: RolloutRow, entry: LogEntry) -> None:
        """Put a batch over the mixture, all of it and its place in the log under one hold of the lock.

        So every search sees the mixture of a place of the log. It waits for a copy at most: 0.3 ms for 1,024 rows of 256.
        What takes longer, the ledger's word and the extent with its checksum, comes before.
        """
        whole = read_batch(connection, rollout, entry)
        self._grow(int(max(whole.rows.max(initial=-1), whole.emptied.max(initial=-1))) + 1)
        batch = whole.of(self.shard).unless_newer(self._served.version, rollout.id)
        vectors = batch_rows(rollout, batch, self._served.index.dim, self._served.path.codes)
        reach("replica_read")
        contents: Mapping[int, Mapping[str, str]] = {}
        if (columns := self._served.columns) is not None:
            known = columns.known
            contents = contents_of_batch(connection, rollout, entry, batch.rows, known, self.shard)
        with self._lock.write():
            served = self._served
            if served.floats is not None and entry.first_rank >= rollout.plan_items:  # late: of newer content
                served.floats.forget(np.concatenate([whole.rows, whole.emptied]))
            if len(batch.rows):
                served.index.replace(batch.rows, vectors)
                reach("replica_mid_apply")
                served.mark(batch.rows, rollout.id)
                if columns is not None:
                    put(columns, batch.rows, contents)  # no search sees the one without the other
            if len(batch.emptied):
                served.empty(batch.emptied)
            self.seq = entry.seq
        reach("replica_applied")

    def _grow(self, n: int) -> None:
        """Make room for rows that came late: the gallery has `n`."""
        n = self.shard.size(n)
        if n > len(self._served.version):
            with self._lock.write():
                self._served.grow(n)

    def _empty(self, rows: Rows, seq: int) -> None:
        """These rows have no vector from this place of the log on."""
        with self._lock.write():
            if len(rows):
                self._served.empty(rows)
            self.seq = seq

    def search(self, queries: Sequence[Any], k: int = 10, where: Where | None = None) -> list[Answer]:
        """Answer queries (decoded images or texts), each from one consistent mixture.

        The query is encoded outside the lock; when the model or its adapter was switched meanwhile, it is encoded again.

        Args:
            where: attribute → the value that items must have, or several values of which they must have one. The label is
                an attribute named `label`.

        Raises:
            UsageError: a filter that is none, or an attribute that no item has.
            NotCertifiedError: vectors are stored that the model may not search; the pair is named.
        """
        while True:
            path = self._served.path
            encoder = self._context.encoder(path.embedder)
            vectors = encoder.encode([encoder.preprocess(query) for query in queries])
            with suppress(StalePathError):
                return self._search(path, vectors, k, where, queries)

    def search_vectors(
        self,
        vectors: npt.NDArray[np.float32],
        k: int = 10,
        where: Where | None = None,
        *,
        path_ids: tuple[int, int | None] | None = None,
        contents: Sequence[Any] | None = None,
    ) -> list[Answer]:
        """Answer queries that are embedded already, each from one consistent mixture.

        Args:
            vectors: (q, dim) float32, L2-normalised, as the model that serves makes them: before a query adapter or a codec.
            path_ids: the `path.ids` that they were made for.
            contents: the decoded queries, for a guard, None where there is but a vector: that answer is not guarded.

        Raises:
            StalePathError: another model or adapter serves by now: encode the queries again.
            UsageError: vectors of another shape or length than the model's, or a filter as in `search`.
            NotCertifiedError: as in `search`.
        """
        path = self._served.path
        if path_ids is not None and path_ids != path.ids:
            raise stale(path)
        return self._search(path, checked_queries(vectors, path.embedder), k, where, contents)

    def _search(
        self,
        path: QueryPath,
        vectors: npt.NDArray[np.float32],
        k: int,
        where: Where | None,
        contents: Sequence[Any] | None,
    ) -> list[Answer]:
        """Search one mixture with the vectors that `path` made."""
        wanted = None if where is None else checked(where)
        if wanted and self._served.columns is None:
            self.load_attributes()
        queries = mapped(self._context, path, vectors)
        guarding: GuardedSearch | None = None
        while True:
            with self._lock.read():
                served = self._served
                if served.path.ids != path.ids:
                    raise stale(served.path)
                if served.refused is not None:
                    raise NotCertifiedError(served.refused)
                asked, allowed = fitting(queries, served.index.dim, path.codes), served.allowed(wanted)
                deep = k if served.floats is None else max(k, self._rerank)
                scores, rows = served.index.search(asked, min(deep, max(1, len(served.version))), allowed)
                answered: Guarded | None = scores, rows, np.zeros(len(rows), np.bool_)
                if served.guard is not None and contents is not None:
                    if guarding is None or guarding.guard != served.guard:
                        guarding = GuardedSearch(self._context, served.guard, contents)
                    answered = guarding.answer(served.index, served.version, asked, scores, rows, allowed)
                if answered is not None:
                    found = self._found(served, *answered)
                    break
            assert guarding is not None, "only a guard asks for more"
            guarding.encode()  # outside the lock; the mixture may move meanwhile, so everything is searched again
        if served.floats is not None:  # outside the lock: it reads the store
            found = reranked(found, served.floats, vectors, k)
        items = self.items(sorted({row for row in found.rows.ravel().tolist() if row >= 0}))
        return found.answers(path.model.name, items)

    def _found(
        self,
        served: Served,
        scores: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        guarded: npt.NDArray[np.bool_],
    ) -> Found:
        versions = np.zeros_like(rows)
        versions[rows >= 0] = served.version[rows[rows >= 0]]
        place = self.seq, served.coverage_ratio, served.rollout_id, len(served.version)
        picked = None if served.columns is None else served.columns.pick(rows)
        return Found(scores, self.shard.rows(rows), versions, guarded, *place, picked)

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

    def unfollow(self) -> None:
        """Stop following, and stand still."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def close(self) -> None:
        """Stop following; what the index holds outside this process is gone after it."""
        self.unfollow()
        self._served.index.close()

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
