"""A replica's vectors on disk at one place of the log: written while it serves, and what a restart goes on from.

The vectors are kept as they are searched: raw where nothing is calibrated, else laid out (`serving.calibration`). Which maps
they were laid out with stands beside them: where the ledger says others now, the snapshot is of no use.

What a restart makes of it is what `laid_out` makes of the ledger and all extents, bit for bit, or nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.core.calibration import Calibration
from orchestrator.core.shards import WHOLE, Shard
from orchestrator.errors import HotrefreshError
from orchestrator.failpoints import reach
from orchestrator.index import Lock, Rows, Vectors
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, LogEntry, RolloutRow
from orchestrator.serving.calibration import batch_rows, calibrated, served_calibrations
from orchestrator.serving.coded import EMPTY, Layout
from orchestrator.serving.matrix import HOLDS_ALL, GalleryMatrix, load_matrix, read_batch
from orchestrator.serving.served import Served
from orchestrator.serving.snapshot_file import Draft, Kept, UnusableSnapshotError

# Copied under one hold of the lock, which keeps batches out and, while one waits, searches: about a millisecond.
SLICE_BYTES = 4 << 20
# Rows that were written meanwhile are copied again so often without stopping anybody; the rest under one hold.
_ROUNDS = 32
_PAGE = 4096

Mark = tuple[int, str, int | None, str]
"""What a log holds at a place: sequence number, kind, rollout, and when it was committed. No other history has the same."""


def mark_of(entry: LogEntry) -> Mark:
    """The mark of an entry."""
    return entry.seq, entry.kind, entry.rollout_id, "" if entry.at is None else entry.at.isoformat()


def mark_at(connection: Connection, gallery_id: int, seq: int) -> Mark | None:
    """The mark of a place of a gallery's log; None where there is no such entry."""
    found = log_queries.log_after(connection, gallery_id, seq - 1, 1)
    return mark_of(found[0]) if found and found[0].seq == seq else None


def identity(gallery: GalleryRow, shard: Shard, mark: Mark) -> dict[str, Any]:
    """What says which gallery, ledger and shard a snapshot is of, and which place of the log: part of its description."""
    return {
        "gallery": gallery.id,
        "created_at": gallery.created_at.isoformat(),
        "mark": list(mark),
        "shard": _named(shard),
    }


def _named(shard: Shard) -> list[int] | None:
    return None if shard.whole else [shard.number, shard.count, shard.block]


def check_identity(
    connection: Connection, gallery: GalleryRow, shard: Shard, description: Mapping[str, Any]
) -> int:
    """The place of the log that a snapshot is of.

    Raises:
        UnusableSnapshotError: it is of another gallery or ledger, of other rows, or of a history that this ledger does not
            have (any more).
    """
    if (description["gallery"], description["created_at"]) != (gallery.id, gallery.created_at.isoformat()):
        raise UnusableSnapshotError("it is of another gallery or ledger.")
    if description["shard"] != _named(shard):
        raise UnusableSnapshotError("it is of another shard.")
    seq = int(description["mark"][0])
    last = log_queries.last_seq(connection, gallery.id)
    if seq > last:
        raise UnusableSnapshotError(f"it is of place {seq} of the log, which ends at {last}.")
    found = mark_at(connection, gallery.id, seq)
    if found is None or list(found) != description["mark"]:
        raise UnusableSnapshotError(f"place {seq} of the log is another than when it was written.")
    return seq


def laid_out(
    connection: Connection, gallery_id: int, shard: Shard = WHOLE, *, before: int | None = None
) -> GalleryMatrix:
    """The gallery's mixture as it is searched, out of the ledger and all extents: (n, width), calibrated where need be.

    The arguments are those of `load_matrix`.
    """
    matrix = load_matrix(connection, gallery_id, before=before, shard=shard)
    maps = served_calibrations(connection, gallery_id)
    return replace(matrix, vectors=calibrated(matrix.vectors, matrix.version, maps))


# Writing


@dataclass(frozen=True)
class Copied:
    """A copy of one place of the log: how many rows of which width the file holds, their versions (n,), and the place."""

    n: int
    width: int
    version: npt.NDArray[np.int64]
    mark: Mark


class InterruptedCopyError(HotrefreshError):
    """The copy was given up: the replica stops, or what it serves was loaded anew. Nothing was written that is read."""

    code = "interrupted_copy"


class Copy:
    """Copies what is served into a draft, from its first byte on, in slices; whoever searches waits for none of it.

    A row that is written after it was copied is noted by `Served` and copied again. The last of them are copied under the
    hold of the lock that also reads the place of the log: the file is then of that place and no other.

    Args:
        current: what is served, and the mark of its place. Called under the lock.
        stop: ends the copy.
    """

    def __init__(
        self,
        draft: Draft,
        lock: Lock,
        current: Callable[[], tuple[Served, Mark | None]],
        stop: threading.Event | None = None,
    ) -> None:
        self._draft = draft
        self._lock = lock
        self._current = current
        self._stop = stop or threading.Event()
        self._version = np.zeros(0, np.int64)

    def run(self) -> Copied:
        """Copy.

        Raises:
            InterruptedCopyError: see there; also where another copy is under way.
        """
        reach("snapshot_begun")
        with self._lock.read():  # no batch is applied meanwhile: what is written from here on is noted
            served, _ = self._current()
            if served.written is not None:
                raise InterruptedCopyError("another copy is under way.")
            served.written = []
        try:
            return self._all_of(served)
        finally:
            with self._lock.read():
                served.written = None

    def _all_of(self, served: Served) -> Copied:
        n, width = len(served.version), served.index.dim
        step = max(1, SLICE_BYTES // (4 * width))
        self._version = np.zeros(n, np.int64)
        for first in range(0, n, step):
            self._copy(served, np.arange(first, min(n, first + step)))
            reach("snapshot_copying")
        for turn in range(_ROUNDS):
            with self._lock.read():
                rows = self._again(served)
                if len(rows) <= step or turn == _ROUNDS - 1:
                    taken = self._take(served, rows)
                    n, (_, mark) = len(served.version), self._current()
                    break
            for first in range(0, len(rows), step):
                self._copy(served, rows[first : first + step])
        self._keep(rows, *taken)
        if mark is None:
            raise InterruptedCopyError("the place of the log is not known.")
        return Copied(n, width, self._version, mark)

    def _again(self, served: Served) -> Rows:
        """The rows written since they were copied, each once, rising; the notes begin anew."""
        self._go_on(served)
        assert served.written is not None
        noted, served.written = served.written, []
        rows: Rows = np.unique(np.concatenate(noted)) if noted else np.zeros(0, np.int64)
        return rows

    def _copy(self, served: Served, rows: Rows) -> None:
        with self._lock.read():
            self._go_on(served)
            taken = self._take(served, rows)
        self._keep(rows, *taken)

    def _go_on(self, served: Served) -> None:
        if self._stop.is_set():
            raise InterruptedCopyError("it stops.")
        if self._current()[0] is not served:
            raise InterruptedCopyError("the gallery was loaded anew.")

    def _take(self, served: Served, rows: Rows) -> tuple[Vectors, Rows]:
        vectors = served.index.read(rows)
        assert vectors is not None, "whoever copies asks `can_copy` first"
        return vectors, served.version[rows]

    def _keep(self, rows: Rows, vectors: Vectors, version: Rows) -> None:
        """Write rows to their places in the file; no lock is held."""
        if not len(rows):
            return
        if rows[-1] >= len(self._version):
            self._version = np.append(self._version, np.zeros(rows[-1] + 1 - len(self._version), np.int64))
        self._version[rows] = version
        ends = np.flatnonzero(np.diff(rows) != 1) + 1  # rows that stand together are written together
        for first, part in zip(rows[np.r_[0, ends]], np.split(vectors, ends), strict=True):
            self._draft.write(int(first) * vectors.shape[1] * 4, part)


def can_copy(served: Served) -> bool:
    """Whether the vectors are in this process, where a copy does not ask a server for all of them."""
    return served.index.read(np.zeros(0, np.int64)) is not None


def described(connection: Connection, gallery: GalleryRow, shard: Shard, copied: Copied) -> dict[str, Any]:
    """The description of a copy.

    Raises:
        InterruptedCopyError: the ledger no longer has the place of the log that was copied.
    """
    if mark_at(connection, gallery.id, copied.mark[0]) != copied.mark:
        raise InterruptedCopyError("the ledger is not the one that the log was read from.")
    maps = served_calibrations(connection, gallery.id)
    return {
        **identity(gallery, shard, copied.mark),
        "maps": {str(version): each.stored() for version, each in maps.items()},
    }


# Reading


def restored(connection: Connection, gallery: GalleryRow, shard: Shard, kept: Kept) -> GalleryMatrix:
    """What `laid_out` gives, from a snapshot and the log behind it.

    Args:
        connection: in a REPEATABLE READ transaction.

    Raises:
        UnusableSnapshotError: another gallery, ledger or history, other maps or another width, or the log behind it holds
            something that changes more than the rows it names.
    """
    seq = check_identity(connection, gallery, shard, kept.description)
    matrix = GalleryMatrix(kept.arrays["vectors"], kept.arrays["version"], seq, shard)
    holders = {
        each.id: each
        for each in rollout_queries.effective_rollouts(connection, gallery.id)
        if each.how.holds_vectors
    }
    _check_layout(connection, gallery.id, matrix, holders, kept.description["maps"])
    entries = _behind(connection, gallery.id, seq)
    gone = log_queries.deleted_rows(connection, gallery.id, entries[-1].seq if entries else seq)
    deleted = shard.own(np.array(gone, np.int64))
    healed = shard.own(np.array(log_queries.rows_healed(connection, gallery.id, seq), np.int64))
    healed = np.setdiff1d(healed[healed < len(matrix.version)], deleted)
    if (matrix.version[healed] == 0).any():
        raise UnusableSnapshotError("an item whose change could not be embedded has changed again.")
    for entry in entries:
        _check_entry(connection, entry, holders, matrix.layout)
    _grow(matrix, shard.size(gallery_queries.gallery_by_id(connection, gallery.id).n_items))
    for entry in entries:
        if entry.kind == "batch":
            _apply(connection, matrix, holders[entry.rollout_id or 0], entry)
        matrix.seq = entry.seq
    matrix.vectors[deleted] = 0
    matrix.version[deleted] = 0
    return matrix


def _behind(connection: Connection, gallery_id: int, seq: int) -> list[LogEntry]:
    found: list[LogEntry] = []
    while True:
        page = log_queries.log_after(connection, gallery_id, found[-1].seq if found else seq, _PAGE)
        found += page
        if len(page) < _PAGE:
            return found


def _layout(connection: Connection, holders: Mapping[int, RolloutRow]) -> Layout:
    """The columns of rows as the ledger has them."""
    found = EMPTY
    for number in sorted(holders):
        found = found.over(model_queries.model_by_id(connection, holders[number].to_model_id))
        if holders[number].config.get(HOLDS_ALL):
            found = found.codes_alone()
    return found


def _check_layout(
    connection: Connection,
    gallery_id: int,
    matrix: GalleryMatrix,
    holders: Mapping[int, RolloutRow],
    stored: Mapping[str, Any],
) -> None:
    """The vectors are of rollouts that still count, laid out as they would be now."""
    present = set(np.unique(matrix.version).tolist()) - {0}
    if not present <= set(holders):
        raise UnusableSnapshotError(
            f"it holds vectors of rollout {min(present - set(holders))}, which counts no more."
        )
    maps = served_calibrations(connection, gallery_id)
    if any(maps.get(each, Calibration()) != Calibration.of(stored.get(str(each))) for each in present):
        raise UnusableSnapshotError("its scores are calibrated otherwise.")
    matrix.layout = _layout(connection, holders)
    width = matrix.layout.width + bool(maps)
    if matrix.vectors.shape != (len(matrix.version), width):
        raise UnusableSnapshotError(f"its rows are {matrix.vectors.shape[1]} wide, and now {width}.")


def _check_entry(
    connection: Connection, entry: LogEntry, holders: Mapping[int, RolloutRow], layout: Layout
) -> None:
    """An entry behind the snapshot changes no row but those it names."""
    fits = entry.kind in ("deleted", "traffic")
    rollout = None if fits else rollout_queries.rollout_by_id(connection, entry.rollout_id or 0)
    if rollout is not None:
        if entry.kind == "batch":
            if rollout.id not in holders:
                raise UnusableSnapshotError(
                    f"entry {entry.seq} of the log is of rollout {rollout.id}, which counts no more."
                )
            fits = True
        elif entry.kind == "deployed":
            fits = rollout.kind == "upgrade" and not rollout.how.lifts
        elif entry.kind == "finalized":
            fits = rollout.kind == "upgrade" and not rollout.config.get(HOLDS_ALL)
        if fits and rollout.how.holds_vectors:
            model = model_queries.model_by_id(connection, rollout.to_model_id)
            fits = model.dim == (layout.codes if model.codes else layout.floats)
            fits &= entry.kind == "batch" or model.codes == layout.codes
    if not fits:
        raise UnusableSnapshotError(
            f"entry {entry.seq} of the log ({entry.kind}) changes more than some rows."
        )


def _grow(matrix: GalleryMatrix, n: int) -> None:
    """Room for rows that came since; they have no vector until a batch brings one."""
    more = n - len(matrix.version)
    if more < 0:
        raise UnusableSnapshotError(f"it holds {len(matrix.version)} rows, and the gallery has {n}.")
    if more:
        width = matrix.vectors.shape[1]
        matrix.vectors = np.concatenate([matrix.vectors, np.zeros((more, width), np.float32)])
        matrix.version = np.append(matrix.version, np.zeros(more, np.int64))


def _apply(connection: Connection, matrix: GalleryMatrix, rollout: RolloutRow, entry: LogEntry) -> None:
    batch = read_batch(connection, rollout, entry).of(matrix.shard)
    touched: Sequence[Rows] = (batch.rows, batch.emptied)
    if any((matrix.version[rows] > rollout.id).any() for rows in touched):
        raise UnusableSnapshotError(
            f"entry {entry.seq} of the log is of an older rollout than what it writes to."
        )
    matrix.vectors[batch.rows] = batch_rows(rollout, batch, matrix.vectors.shape[1], matrix.layout.codes)
    matrix.version[batch.rows] = rollout.id
    matrix.vectors[batch.emptied] = 0
    matrix.version[batch.emptied] = 0
