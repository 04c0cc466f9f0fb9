"""A gallery's vectors as the ledger says they are: base extents, adapted extents, committed batches, in log order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import LogEntry, RolloutRow
from orchestrator.store.extents import ADAPTED, VECTORS, ExtentFile, read_rows

Vectors = npt.NDArray[np.float32]


@dataclass
class GalleryMatrix:
    """The mixture at one place of the log.

    Attributes:
        vectors: (n, dim) float32; zero where an item has no vector.
        version: (n,) int64, the rollout each vector comes from; 0 where there is none.
        seq: the last log entry it holds.
    """

    vectors: Vectors
    version: npt.NDArray[np.int64]
    seq: int


def extent_file(connection: Connection, rollout: RolloutRow) -> ExtentFile:
    """The file of a rollout's new vectors."""
    dim = model_queries.model_by_id(connection, rollout.to_model_id).dim
    return ExtentFile(Path(rollout.extent_uri), VECTORS, rollout.n_items, dim)


def adapted_file(connection: Connection, rollout: RolloutRow) -> ExtentFile:
    """The file of a rollout's adapted old vectors, in row order."""
    dim = model_queries.model_by_id(connection, rollout.to_model_id).dim
    return ExtentFile(Path(rollout.extent_uri), ADAPTED, rollout.n_items, dim)


def read_batch(
    connection: Connection, rollout: RolloutRow, entry: LogEntry
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """The rows and vectors that a committed batch brings, without its holes: (m,) int64 and (m, dim) float32."""
    assert entry.no is not None
    assert entry.n is not None
    first = entry.no * rollout.batch_size
    vectors = extent_file(connection, rollout).read(first, entry.n, entry.crc)
    rows = np.asarray(read_rows(Path(rollout.extent_uri), rollout.n_items)[first : first + entry.n], np.int64)
    if entry.holes:
        keep = np.ones(entry.n, bool)
        keep[list(entry.holes)] = False
        return rows[keep], vectors[keep]
    return rows, vectors


def load_matrix(
    connection: Connection, gallery_id: int, *, before: int | None = None, up_to: int | None = None
) -> GalleryMatrix:
    """The gallery's mixture, out of the ledger and the store.

    Args:
        before: leave this rollout and newer ones out (what was served before it).
        up_to: apply only log entries up to this one.

    A REPEATABLE READ transaction makes the log position and the rollouts' states one instant.
    """
    seq = batch_queries.last_seq(connection, gallery_id) if up_to is None else up_to
    rollouts = [
        r
        for r in rollout_queries.effective_rollouts(connection, gallery_id)
        if before is None or r.id < before
    ]
    n = rollouts[0].n_items if rollouts else 0
    matrix = GalleryMatrix(np.zeros((n, 0), np.float32), np.zeros(n, np.int64), seq)
    for rollout in rollouts:
        apply_rollout(connection, matrix, rollout, seq)
    return matrix


def apply_rollout(connection: Connection, matrix: GalleryMatrix, rollout: RolloutRow, seq: int) -> None:
    """Put a rollout's adapted vectors, then its committed batches up to `seq`, over the matrix, in place."""
    extents = extent_file(connection, rollout)
    if rollout.adapted_uri is not None:
        matrix.vectors = np.array(adapted_file(connection, rollout).map())
    elif matrix.vectors.shape[1] != extents.dim:  # the first embedding, or a change of dim without an adapter
        matrix.vectors = np.zeros((rollout.n_items, extents.dim), np.float32)
        matrix.version[:] = 0
    for entry in batch_queries.committed_batches(connection, rollout.id, seq):
        rows, vectors = read_batch(connection, rollout, entry)
        matrix.vectors[rows] = vectors
        matrix.version[rows] = rollout.id
