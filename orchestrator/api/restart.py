"""A served gallery's snapshot: what a start goes on from, and what is written while it serves. One a gallery, two files:

    <data_dir>/replicas/<gallery id>/vectors.snapshot   the mixture at one place of the log, written again and again
                                     items.snapshot     keys, URIs, labels, attributes as they were loaded, written when they were

Each is used or refused for itself. What is refused is loaded from the ledger and the extents, as without a snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.api.directory import Directory, items_of
from orchestrator.api.log import log
from orchestrator.context import Context
from orchestrator.index import Lock
from orchestrator.ledger.database import snapshot, transaction
from orchestrator.ledger.queries import directory as directory_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.rows import GalleryRow, ItemRow
from orchestrator.serving.filters import Columns, learn, put_changes
from orchestrator.serving.matrix import GalleryMatrix
from orchestrator.serving.served import Served
from orchestrator.serving.snapshot_file import Draft, Kept, UnusableSnapshotError, only_writer, read
from orchestrator.serving.snapshots import (
    Copy,
    InterruptedCopyError,
    Mark,
    can_copy,
    check_identity,
    described,
    identity,
    laid_out,
    mark_at,
    restored,
)

# Items read by one statement while a gallery is loaded.
PAGE = 20_000
# A copy that was interrupted is begun again so soon.
AGAIN_S = 10.0
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Standing:
    """Where a replica stands, for whoever copies what it serves.

    Attributes:
        lock: what it searches and writes under.
        seq: the place of the log.
        current: what is served, and the mark of its place; called under the lock.
    """

    lock: Lock
    seq: Callable[[], int]
    current: Callable[[], tuple[Served, Mark | None]]


class Restart:
    """Loads a gallery, from its snapshot where there is one that is right, and writes the snapshot while it is served."""

    def __init__(self, context: Context, gallery: GalleryRow) -> None:
        self._context = context
        self._gallery = gallery
        self._shard = context.settings.held
        self._every_s = context.settings.replica_snapshot_s
        self._folder = context.settings.data_dir.absolute() / "replicas" / str(gallery.id)
        if not self._shard.whole:  # several may share a folder
            self._folder /= f"shard-{self._shard.number}-of-{self._shard.count}"
        self.seq: int | None = None
        """The place of the log of the snapshot that a start would go on from; None: there is none."""
        # A shard's items are read from the ledger: that file counts rows as a whole gallery does.
        self._vectors, self._items = self._find("vectors"), self._find("items") if self._shard.whole else None
        self._rows = 0  # of the items that the file has
        self._changed: Rows = np.zeros(0, np.int64)
        self._mark: Mark | None = None
        self._unwritten: tuple[int, Mark, dict[str, list[str]], npt.NDArray[np.int32]] | None = None
        self._directory = Directory()
        self._columns: Columns | None = None
        self._loaded = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._standing: Standing | None = None

    def _path(self, part: str) -> Path:
        return self._folder / f"{part}.snapshot"

    def _find(self, part: str) -> Kept | None:
        if not self._every_s:
            return None
        try:
            return read(self._path(part))
        except Exception as error:  # noqa: BLE001 - nothing about a snapshot may keep a gallery from being loaded
            self._refuse(part, error)
            return None

    def _refuse(self, part: str, error: Exception) -> None:
        why = str(error) if isinstance(error, UnusableSnapshotError) else f"{type(error).__name__}: {error}"
        log(
            "snapshot.not_used",
            gallery=self._gallery.name,
            part=part,
            message=f"{part} are loaded fresh: {why}",
        )

    # Loading, in this order

    def items(self) -> Directory:
        """The items by row and by key."""
        first, engine = 0, self._context.engine
        kept, self._items = self._items, None
        if kept is not None:
            try:
                with snapshot(engine) as connection:
                    first = self._known(connection, kept)
                self._columns = Columns.of_arrays(kept.description["values"], kept.arrays["codes"])
            except Exception as error:  # noqa: BLE001 - as above
                self._refuse("items", error)
                self._directory, first = Directory(), 0
        self._rows = first
        for page in _pages(self._context, self._gallery.id, first):
            self._directory.extend(items_of(self._shard, page))
        with transaction(engine) as connection:
            changed = directory_queries.changed_items(connection, self._gallery.id)
        if first:  # the pages are as they are now
            self._directory.put(changed)
        self._changed = np.array([item.row for item in changed], np.int64)
        return self._directory

    def _known(self, connection: Connection, kept: Kept) -> int:
        """How many rows' items a file has. Those that changed may stand in it in any state: they are read anew."""
        check_identity(connection, self._gallery, self._shard, kept.description)
        rows = int(kept.description["rows"])
        if gallery_queries.gallery_by_id(connection, self._gallery.id).n_items < rows:
            raise UnusableSnapshotError("the gallery has fewer items.")
        changed = directory_queries.changed_items(connection, self._gallery.id)
        if not set(kept.arrays["changed"].tolist()) <= {item.row for item in changed}:
            raise UnusableSnapshotError("an item had changed in it that has not changed.")
        self._directory = Directory.of_arrays(kept.arrays)
        return rows

    def mixture(self, connection: Connection) -> tuple[GalleryMatrix, Mark | None]:
        """The vectors as they are searched, and the mark of their place. A snapshot serves once: at the start."""
        kept, self._vectors = self._vectors, None
        matrix = None
        if kept is not None:
            try:
                matrix = restored(connection, self._gallery, self._shard, kept)
                self.seq = int(kept.description["mark"][0])
                log(
                    "snapshot.used",
                    gallery=self._gallery.name,
                    seq=self.seq,
                    behind=matrix.seq - self.seq,
                )
            except Exception as error:  # noqa: BLE001 - as above
                self._refuse("vectors", error)
        matrix = matrix or laid_out(connection, self._gallery.id, self._shard)
        self._mark = mark_at(connection, self._gallery.id, matrix.seq)
        return matrix, self._mark

    def columns(self, connection: Connection, version: Rows, seq: int) -> Columns:
        """The items' attributes. What a later start may take over is noted: items up to the last one that has a vector.

        Its batch is in the log, so whoever has this place of the log has these items.
        """
        columns, self._columns = self._columns or Columns(0, self._shard), None
        having = np.flatnonzero(version)
        rows = max(self._rows, int(having[-1]) + 1 if len(having) else 0)
        learn(connection, self._gallery.id, columns, rows)
        first = not self._loaded and self._shard.whole
        if first and rows > self._rows and self._mark is not None and self._mark[0] == seq:
            self._unwritten = rows, self._mark, *columns.arrays()
        self._loaded = True
        learn(connection, self._gallery.id, columns, len(version))
        put_changes(connection, self._gallery.id, columns, version, seq)
        return columns

    # Writing

    def keep(self, standing: Standing) -> None:
        """Write the snapshot in a thread: now where there is none of this place, later where the place is another."""
        self._standing = standing
        if self._every_s and can_copy(standing.current()[0]):
            self._thread = threading.Thread(
                target=self._go_on, name=f"snapshot-{self._gallery.name}", daemon=True
            )
            self._thread.start()
        else:
            self._unwritten = None

    def _go_on(self) -> None:
        wait_s = 0.0
        while not self._over.wait(wait_s):
            wait_s = self._every_s if self._try(self._over) else min(AGAIN_S, self._every_s)

    def _try(self, stop: threading.Event) -> bool:
        """Write if there is something new; whether to wait the whole time until the next."""
        assert self._standing is not None
        try:
            if self._unwritten is not None or self.seq != self._standing.seq():
                self.write(self._standing, stop)
            return True
        except InterruptedCopyError:
            return False
        except Exception as error:  # noqa: BLE001 - the replica serves without one; tried again in its time
            log("snapshot.failed", level="warning", gallery=self._gallery.name, message=str(error))
            return True

    def write(self, standing: Standing, stop: threading.Event | None = None) -> None:
        """Write the snapshot of where a replica stands.

        Raises:
            InterruptedCopyError: `stop` was set, or the gallery was loaded anew meanwhile.
            ConflictError: another process writes one.
            UnreachableError: the folder or the ledger cannot be used. The snapshot before is still there.
        """
        with only_writer(self._folder):
            if self._unwritten is not None:
                self._write_items(*self._unwritten)
                self._unwritten = None
            with Draft(self._path("vectors")) as draft:
                copied = Copy(draft, standing.lock, standing.current, stop).run()
                with snapshot(self._context.engine) as connection:
                    description = described(connection, self._gallery, self._shard, copied)
                draft.declare("vectors", "<f4", (copied.n, copied.width))
                draft.append("version", copied.version)
                draft.finish(description)
        self.seq = copied.mark[0]

    def _write_items(
        self, rows: int, mark: Mark, values: dict[str, list[str]], codes: npt.NDArray[np.int32]
    ) -> None:
        with Draft(self._path("items")) as draft:
            arrays: dict[str, npt.NDArray[Any]] = self._directory.arrays(rows)
            for name, array in (arrays | {"codes": codes, "changed": self._changed}).items():
                draft.append(name, array)
            draft.finish({**identity(self._gallery, self._shard, mark), "rows": rows, "values": values})

    def end(self) -> None:
        """Stop; the last snapshot is of where the replica stands, which must not move any more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._try(threading.Event())


def _pages(context: Context, gallery_id: int, first: int) -> Iterator[list[ItemRow]]:
    """A gallery's items from a row on, some at a time, so that no statement takes long."""
    while True:
        with transaction(context.engine) as connection:
            page = directory_queries.items_from(connection, gallery_id, first, PAGE)
        yield page
        if len(page) < PAGE:
            return
        first = page[-1].row + 1
