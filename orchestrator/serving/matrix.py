"""A gallery's vectors as the ledger says they are: adapted vectors, committed batches, deletions, in log order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.core.shards import WHOLE, Shard
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import plans as plan_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import LogEntry, RolloutRow
from orchestrator.serving.coded import EMPTY, Layout
from orchestrator.store import ADAPTED, ROWS, Extents, Table, open_extents, open_table, read_array

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

HOLDS_ALL = "holds_all"
"""In the config of a rollout to a codec that was finalized when no row of an older version was left: that place of the log."""


@dataclass
class GalleryMatrix:
    """The mixture at one place of the log.

    Attributes:
        vectors: (n, layout.width) float32; zero where an item has no vector.
        version: (n,) int64, the rollout each vector comes from; 0 where there is none.
        seq: the last log entry it holds.
        shard: whose rows these are, n of them, as it counts them.
        layout: which columns are of codes, and which of floats.
    """

    vectors: Vectors
    version: Rows
    seq: int
    shard: Shard = WHOLE
    layout: Layout = EMPTY


@dataclass(frozen=True)
class BatchVectors:
    """What a committed batch brings.

    Attributes:
        rows: (m,) int64; vectors: (m, dim) float32, their new vectors.
        coded: these are codes.
        emptied: rows whose changed content could not be embedded: they have no vector from here on.
        kept: rows that could not be embedded and keep the vector they have.
    """

    rows: Rows
    vectors: Vectors
    emptied: Rows
    kept: Rows
    coded: bool

    def of(self, shard: Shard) -> BatchVectors:
        """What of it is a shard's, its rows as the shard counts them."""
        if shard.whole:
            return self
        own = [shard.own(rows) for rows in (self.rows, self.emptied, self.kept)]
        return BatchVectors(own[0], self.vectors[shard.holds(self.rows)], own[1], own[2], self.coded)

    def unless_newer(self, version: Rows, rollout_id: int) -> BatchVectors:
        """Without the rows that a newer rollout holds by now. `version`: (n,) int64, as in `GalleryMatrix`."""
        keep, empty = version[self.rows] <= rollout_id, version[self.emptied] <= rollout_id
        if keep.all() and empty.all():
            return self
        return replace(self, rows=self.rows[keep], vectors=self.vectors[keep], emptied=self.emptied[empty])


def extents_of(connection: Connection, rollout: RolloutRow) -> Extents:
    """A rollout's new vectors."""
    model = model_queries.model_by_id(connection, rollout.to_model_id)
    return open_extents(rollout.extent_uri, model.dim, model.code_shape)


def adapted_table(connection: Connection, rollout: RolloutRow) -> Table:
    """A rollout's adapted old vectors, in row order."""
    dim = model_queries.model_by_id(connection, rollout.to_model_id).dim
    return open_table(rollout.extent_uri, ADAPTED, rollout.lifted_items, dim)


def rows_of_ranks(connection: Connection, rollout: RolloutRow, first: int, count: int, revision: int) -> Rows:
    """The rows of the ranks [first, first + count) of a revision of the plan, or of those behind it: (count,) int64.

    Args:
        revision: the batch's own (of its claim, or of its log entry). Later ones may have other rows only at ranks of
            batches that were waiting, and then those batches name them.
    """
    if first >= rollout.plan_items:
        return np.array(item_queries.late_rows(connection, rollout.id, first, count), np.int64)
    return np.asarray(plan_rows(connection, rollout, revision)[first : first + count], np.int64)


def plan_rows(connection: Connection, rollout: RolloutRow, revision: int) -> npt.NDArray[np.uint32]:
    """The row of every rank of a revision of the plan: (plan_items,) uint32. Its file is written once, so it is never stale."""
    file = plan_queries.plan_file(connection, rollout.id, revision) if revision else ROWS
    return read_array(rollout.extent_uri, file, "<u4", rollout.plan_items)


def read_batch(connection: Connection, rollout: RolloutRow, entry: LogEntry) -> BatchVectors:
    """The rows and vectors that a committed batch brings, without its holes and what was superseded."""
    rows = rows_of_ranks(connection, rollout, entry.first_rank, entry.n, entry.plan_revision)
    keep = np.ones(entry.n, bool)
    keep[list(entry.holes + entry.superseded)] = False
    holes, none = rows[list(entry.holes)], rows[:0]
    emptied, kept = (holes, none) if entry.first_rank >= rollout.plan_items else (none, holes)
    extents = extents_of(connection, rollout)
    coded = extents.format.codes is not None
    if entry.crc is None:  # nothing but holes: nothing was written
        return BatchVectors(rows[:0], np.zeros((0, extents.format.dim), np.float32), emptied, kept, coded)
    vectors = extents.read(entry.first_rank, entry.n, entry.fence, entry.crc)
    return BatchVectors(rows[keep], vectors[keep], emptied, kept, coded)


def load_matrix(
    connection: Connection,
    gallery_id: int,
    *,
    before: int | None = None,
    up_to: int | None = None,
    shard: Shard = WHOLE,
) -> GalleryMatrix:
    """The gallery's mixture, out of the ledger and the store; of a shard its rows alone.

    Codes take the place of floats beside them: (n, m + d). When that is accepted and no float was left (`HOLDS_ALL`), (n, m).

    Args:
        before: leave this rollout and newer ones out (what was served before it).
        up_to: apply only log entries up to this one.

    A REPEATABLE READ transaction makes the log position and the rollouts' states one instant.
    """
    seq = log_queries.last_seq(connection, gallery_id) if up_to is None else up_to
    n = shard.size(gallery_queries.gallery_by_id(connection, gallery_id).n_items)
    matrix = GalleryMatrix(np.zeros((n, 0), np.float32), np.zeros(n, np.int64), seq, shard)
    deleted = shard.own(np.array(log_queries.deleted_rows(connection, gallery_id, seq), np.int64))
    effective = rollout_queries.effective_rollouts(connection, gallery_id)
    rollouts = [rollout for rollout in effective if before is None or rollout.id < before]
    whole = [at for at, each in enumerate(rollouts) if each.config.get(HOLDS_ALL, seq + 1) <= seq]
    rollouts = rollouts[whole[-1] :] if whole else rollouts
    for rollout in rollouts:
        apply_rollout(connection, matrix, rollout, seq)
    matrix.vectors[deleted] = 0
    matrix.version[deleted] = 0
    return matrix


def apply_rollout(connection: Connection, matrix: GalleryMatrix, rollout: RolloutRow, seq: int) -> None:
    """Put a rollout's adapted vectors, then its committed batches up to `seq`, over the matrix, in place."""
    if not rollout.how.holds_vectors:
        return
    model = model_queries.model_by_id(connection, rollout.to_model_id)
    older, matrix.layout = matrix.layout, matrix.layout.over(model)
    if rollout.adapted_uri is not None:
        # Items that came after the start have no adapted vector; their own batch brings one.
        matrix.vectors = np.zeros((len(matrix.version), model.dim), np.float32)
        adapted = adapted_table(connection, rollout).map()
        for own, rows in matrix.shard.slices(rollout.lifted_items):
            matrix.vectors[own] = adapted[rows]
        matrix.version[matrix.shard.size(rollout.lifted_items) :] = 0
    elif (
        matrix.layout.width != older.width
    ):  # the first embedding, codes over floats, a change of dim without an adapter
        matrix.vectors = matrix.layout.widened(matrix.vectors, older)
        matrix.version[~matrix.vectors.any(axis=1)] = 0
    for entry in log_queries.committed_batches(connection, rollout.id, seq):
        batch = read_batch(connection, rollout, entry).of(matrix.shard)
        matrix.vectors[batch.rows] = matrix.layout.rows(batch.vectors, coded=batch.coded)
        matrix.version[batch.rows] = rollout.id
        matrix.vectors[batch.emptied] = 0
        matrix.version[batch.emptied] = 0


def unfinished_versions(connection: Connection, rollout: RolloutRow) -> Rows | None:
    """Which older, superseded rollout holds each row: (n,) int64, 0 where none does; None where there is no such rollout.

    These rollouts commit nothing any more, so what is read once stays right.
    """
    superseded = [
        r
        for r in rollout_queries.effective_rollouts(connection, rollout.gallery_id)
        if r.id < rollout.id and r.state == "superseded"
    ]
    if not superseded:
        return None
    held = np.zeros(gallery_queries.gallery_by_id(connection, rollout.gallery_id).n_items, np.int64)
    for older in superseded:
        for entry in log_queries.committed_batches(connection, older.id, 2**62):
            rows = rows_of_ranks(connection, older, entry.first_rank, entry.n, entry.plan_revision)
            held[rows] = older.id
    return held
