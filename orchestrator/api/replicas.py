"""The replicas that answer this process's searches: one a gallery, following the log, with or without the ledger."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.api.directory import items_of
from orchestrator.api.log import log
from orchestrator.api.restart import Restart, Standing
from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.errors import ConflictError, HotrefreshError, NotFoundError
from orchestrator.ledger.database import snapshot, transaction
from orchestrator.ledger.queries import directory as directory_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ItemRow, LogEntry
from orchestrator.service.names import find_gallery
from orchestrator.serving.filters import Columns
from orchestrator.serving.guard import RolloutGuard
from orchestrator.serving.matrix import GalleryMatrix
from orchestrator.serving.queries import QueryPath, load
from orchestrator.serving.replica import Replica
from orchestrator.serving.snapshots import Mark, mark_of
from orchestrator.serving.traffic import TAKEN_BACK, Traffic

# Galleries that were embedded since are found within this time.
DISCOVER_S = 2.0
Rows = npt.NDArray[np.int64]


class ServedReplica(Replica):
    """A replica that knows its items' names by itself: no search asks the ledger, so none misses it.

    An item is named as it was when its vector was embedded: both change in the same step of the log. Of a shard
    (`Settings.shard`) it knows the shard's items alone.
    """

    def __init__(self, context: Context, gallery: GalleryRow) -> None:
        self.shard = context.settings.held
        self._restart = Restart(context, gallery)
        self._directory = self._restart.items()
        self._catching_up = threading.Lock()
        self._models: dict[int, str] = {}
        # By sequence number, those of the newest places.
        self._marks: dict[int, Mark | None] = {}
        super().__init__(context, gallery)
        self.load_attributes()  # … nor does a filter
        load(context, self.path)  # the first search does not wait for it

    def _drop(self, rows: Sequence[int]) -> None:
        some = np.array(rows, np.int64)
        self._directory.drop(some[self.shard.holds(some)].tolist())

    def _load(self, path: QueryPath, guard: RolloutGuard | None) -> None:
        if guard is not None and not self.shard.whole and not self._is_over(guard.rollout_id):
            raise ConflictError(
                f"rollout {guard.rollout_id} has a guard, which asks both models for the best of the whole gallery, and shards "
                f"do not; roll it back with `hotrefresh rollout rollback {guard.rollout_id}` and start it without a guard."
            )
        super()._load(path, guard)

    def _is_over(self, rollout_id: int) -> bool:
        """Whether a rollout is finalized or taken back: its guard helps nobody any more."""
        with transaction(self._context.engine) as connection:
            rollout = rollout_queries.rollout_by_id(connection, rollout_id)
        return rollout is not None and RolloutState(rollout.state) in {RolloutState.FINALIZED, *TAKEN_BACK}

    def catch_up(self) -> int:
        with self._catching_up:  # the follower, or a request that cannot wait for it
            return super().catch_up()

    def reach_place(self, seq: int) -> None:
        """Apply what is new if the log's place `seq` is not reached; nothing where the log cannot be followed."""
        with self._catching_up:
            if self.seq < seq and self.error is None:
                with suppress(HotrefreshError):  # the follower meets it too, and keeps it
                    super().catch_up()

    def place(self) -> tuple[int, QueryPath, int | None]:
        """Where the log stands here, and what serves at that place: path and rollout."""
        with self._lock.read():
            return self.seq, self._served.path, self._served.rollout_id

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that some item held here has."""
        columns = self._served.columns
        return () if columns is None else columns.names

    @property
    def models(self) -> dict[int, str]:
        """Rollout → the name of the model that its vectors come from."""
        return self._models

    def _reload(self) -> None:
        self._learn()  # before its vectors can be found …
        super()._reload()
        self._learn()  # … and what came in between

    def _learn(self) -> None:
        """Read what came, changed or went since the items were loaded, and which model each rollout brings."""
        gallery_id = self.gallery.id
        with snapshot(self._context.engine) as connection:
            self._models = directory_queries.models_of_rollouts(connection, gallery_id)
            self._directory.put(
                items_of(self.shard, directory_queries.late_items_of_gallery(connection, gallery_id))
            )
            seq = log_queries.last_seq(connection, gallery_id)
            self._drop(log_queries.deleted_rows(connection, gallery_id, seq))

    def _mixture(self, connection: Connection) -> GalleryMatrix:
        matrix, mark = self._restart.mixture(connection)
        self._marks = {**self._marks, matrix.seq: mark}
        return matrix

    def _columns(self, connection: Connection, version: Rows, seq: int) -> Columns:
        return self._restart.columns(connection, version, seq)

    @property
    def standing(self) -> Standing:
        """For whoever copies what is served."""
        return Standing(self._lock, lambda: self.seq, lambda: (self._served, self._marks.get(self.seq)))

    @property
    def snapshot_seq(self) -> int | None:
        """The place of the log that a restart would go on from; None: it would load everything."""
        return self._restart.seq

    def keep_snapshots(self) -> None:
        """Write snapshots from time to time, and the last one when the replica is closed."""
        self._restart.keep(self.standing)

    def close(self) -> None:
        self.unfollow()
        self._restart.end()
        super().close()

    def _apply(self, connection: Connection, entry: LogEntry) -> bool:
        self._marks = {self.seq: self._marks.get(self.seq), entry.seq: mark_of(entry)}
        if entry.kind == "deleted":
            self._drop(entry.rows)
        elif entry.kind == "batch":
            assert entry.rollout_id is not None
            late = directory_queries.late_items(connection, entry.rollout_id, entry.first_rank, entry.n)
            self._directory.put(items_of(self.shard, late))
        if entry.rollout_id is not None and entry.rollout_id not in self._models:
            self._models = directory_queries.models_of_rollouts(connection, self.gallery.id)
        return super()._apply(connection, entry)

    def items(self, rows: Sequence[int]) -> dict[int, ItemRow]:
        """Out of memory; rows without an item are left out."""
        return self._directory.of_rows(rows)

    def item(self, key: str) -> ItemRow:
        """The item of a key.

        Raises:
            NotFoundError: there is none.
        """
        found = self._directory.of_key(key)
        if found is None:
            raise no_such_item(self.gallery.name, key)
        return found

    def model_of(self, rollout_id: int) -> str | None:
        """The name of the model that a rollout's vectors come from."""
        return self._models.get(rollout_id)


def no_such_item(gallery_name: str, key: str) -> NotFoundError:
    """The error for a key that no item has."""
    return NotFoundError(
        f"gallery {gallery_name!r} has no item {key[:200]!r}; "
        f"`hotrefresh ledger versions {gallery_name} --items` lists its keys."
    )


class Replicas:
    """Every embedded gallery, found by itself. Safe for many threads."""

    def __init__(self, context: Context, traffic: Traffic | None = None) -> None:
        self._context = context
        self._traffic = traffic
        self._open: dict[str, ServedReplica] = {}
        self._loading: dict[str, threading.Lock] = {}
        self._failed: dict[str, str] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._looked = False
        self._thread = threading.Thread(target=self._discover, name="replicas", daemon=True)

    def start(self) -> None:
        """Load every gallery that has been embedded, now and whenever another one is."""
        self._thread.start()

    def of(self, gallery_name: str) -> ServedReplica:
        """A gallery's replica, loaded here when it is not yet.

        Raises:
            NotFoundError: no such gallery.
            ConflictError: it has no embeddings yet.
            UnreachableError: it is not loaded, and the ledger is away.
        """
        if gallery_name in self._open:
            return self._open[gallery_name]
        with transaction(self._context.engine) as connection:
            gallery = find_gallery(connection, gallery_name)
        with self._lock:
            loading = self._loading.setdefault(gallery_name, threading.Lock())
        with loading:  # others are answered meanwhile
            if gallery_name not in self._open:
                self._open[gallery_name] = self._load(gallery)
        return self._open[gallery_name]

    def _load(self, gallery: GalleryRow) -> ServedReplica:
        replica = ServedReplica(self._context, gallery)
        if self._traffic is not None:
            self._traffic.attach(replica)
        replica.follow()
        replica.keep_snapshots()
        log("replica.loaded", gallery=gallery.name, seq=replica.seq, model=replica.model.name)
        return replica

    def _discover(self) -> None:
        while True:
            try:
                with transaction(self._context.engine) as connection:
                    found = directory_queries.searchable_galleries(connection)
                self._looked = True
            except Exception as error:  # noqa: BLE001 - looked again in a moment; /readyz says what is wrong
                found = []
                log("discovery.failed", level="warning", message=str(error))
            for gallery in found:
                if gallery.name not in self._open:
                    self._try(gallery)
            if self._stop.wait(DISCOVER_S):
                return

    def _try(self, gallery: GalleryRow) -> None:
        before = self._failed.setdefault(gallery.name, "it is being loaded.")
        try:
            self.of(gallery.name)
            self._failed.pop(gallery.name)
        except Exception as error:  # noqa: BLE001 - one gallery that cannot be loaded must not keep the others out
            self._failed[gallery.name] = str(error)
            if str(error) != before:  # tried again every DISCOVER_S, and said once
                log("replica.failed", level="error", gallery=gallery.name, message=str(error))

    def missing(self) -> dict[str, str]:
        """Galleries that cannot be searched here yet, and why; the empty name: nobody has looked what there is."""
        return dict(self._failed) if self._looked else {"": "the galleries are not known yet."}

    def faults(self) -> dict[str, HotrefreshError]:
        """What keeps replicas from following, by gallery; they answer from the place of the log where they stand."""
        return {name: each.error for name, each in list(self._open.items()) if each.error is not None}

    def lags(self) -> dict[str, int]:
        """How many entries of the log each replica has not applied yet."""
        found = {}
        with transaction(self._context.engine) as connection:
            for name, replica in list(self._open.items()):
                found[name] = max(0, log_queries.last_seq(connection, replica.gallery.id) - replica.seq)
        return found

    def ages(self) -> dict[str, float]:
        """Seconds since the oldest entry of the log that each replica has not applied was committed; 0: it has all."""
        with transaction(self._context.engine) as connection:
            return {
                name: log_queries.oldest_age_s(connection, replica.gallery.id, replica.seq)
                for name, replica in list(self._open.items())
            }

    def snapshot_ages(self) -> dict[str, float]:
        """Seconds since the first entry of the log that is not in a replica's snapshot was committed; 0: it has all.

        Replicas that have no snapshot are left out.
        """
        with transaction(self._context.engine) as connection:
            return {
                name: log_queries.oldest_age_s(connection, replica.gallery.id, seq)
                for name, replica in list(self._open.items())
                if (seq := replica.snapshot_seq) is not None
            }

    def refusals(self) -> dict[str, str | None]:
        """Why each replica answers no search, a pair of models without its certificate; None: it answers."""
        return {name: replica.refused for name, replica in list(self._open.items())}

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        for replica in self._open.values():
            replica.close()
