"""The stored embeddings of a model, row by row: what a codec encodes again, and what an answer of codes is ranked by again.

They lie where batches of rollouts to that model put them, in the order of those rollouts' plans, or in tables that were
lifted. Where each row's is, is looked up once; rows are then read out of the extents, not the gallery as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import LogEntry, RolloutRow
from orchestrator.serving.matrix import adapted_table, extents_of, rows_of_ranks
from orchestrator.store import CorruptExtentError, Extents

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NOWHERE = -1
# Of a stored vector's length from 1: it was checked when it was written, and rows are read without the extent's checksum.
LENGTH_WITHIN = 1e-2


@dataclass(frozen=True)
class _Batch:
    """A committed batch, or (no entry) a table that was lifted."""

    extents: Extents | None
    entry: LogEntry | None
    table: Vectors | None = None

    def read(self, places: Rows) -> Vectors:
        if self.table is not None:
            return np.asarray(self.table[places])
        assert self.extents is not None
        assert self.entry is not None
        entry = self.entry
        return self.extents.pick(entry.first_rank, entry.n, entry.fence, entry.crc, places)


class StoredFloats:
    """Embeddings of a model that a gallery stores, as the ledger has them when this is made. `read` may be called by any thread,
    also beside `forget`.

    A row has none where the model never embedded it, and where its item was changed after: then it is of former content,
    also if what the change brings is not committed yet.
    """

    def __init__(self, connection: Connection, gallery_id: int, model_id: int) -> None:
        self.dim = model_queries.model_by_id(connection, model_id).dim
        n = gallery_queries.gallery_by_id(connection, gallery_id).n_items
        self._batches: list[_Batch] = []
        self._batch = np.full(n, NOWHERE, np.int32)
        self._place = np.zeros(n, np.int32)
        for rollout in rollout_queries.effective_rollouts(connection, gallery_id):
            if rollout.how.holds_vectors:
                self._follow(connection, rollout, of_model=rollout.to_model_id == model_id)

    def _follow(self, connection: Connection, rollout: RolloutRow, *, of_model: bool) -> None:
        """What a rollout has of the model, and which rows it knows newer content of."""
        late = item_queries.late_rows(connection, rollout.id, rollout.plan_items, 2**31)
        newest = {row: rollout.plan_items + at for at, row in enumerate(late)}
        self._batch[[row for row in newest if row < len(self._batch)]] = NOWHERE
        if not of_model:
            return
        if rollout.adapted_uri is not None:
            self._batch[:] = NOWHERE
            self._put(
                np.arange(rollout.lifted_items),
                np.arange(rollout.lifted_items),
                _Batch(None, None, adapted_table(connection, rollout).map()),
            )
            self._batch[list(newest)] = NOWHERE
        extents = extents_of(connection, rollout)
        for entry in log_queries.committed_batches(connection, rollout.id, 2**62):
            rows = rows_of_ranks(connection, rollout, entry.first_rank, entry.n, entry.plan_revision)
            keep = np.ones(entry.n, np.bool_)
            keep[list(entry.holes + entry.superseded)] = False
            if newest:
                ranks = entry.first_rank + np.arange(entry.n)
                keep &= [
                    newest.get(row, rank) == rank
                    for row, rank in zip(rows.tolist(), ranks.tolist(), strict=True)
                ]
            self._put(rows[keep], np.flatnonzero(keep), _Batch(extents, entry))

    def _put(self, rows: Rows, places: Rows, batch: _Batch) -> None:
        self._batch[rows] = len(self._batches)
        self._place[rows] = places
        self._batches.append(batch)

    def forget(self, rows: Rows) -> None:
        """These rows have newer content from now on: what is stored is of the former."""
        self._batch[rows[rows < len(self._batch)]] = NOWHERE

    def known(self, rows: Rows) -> Bools:
        """Which rows have an embedding: (r,) bool."""
        inside = rows < len(self._batch)
        known: Bools = np.zeros(len(rows), np.bool_)
        known[inside] = self._batch[rows[inside]] != NOWHERE
        return known

    def read(self, rows: Rows) -> tuple[Vectors, Bools]:
        """Embeddings (r, dim) float32 of rows (r,) int64, zero where there is none, and which rows have one: (r,) bool.

        Raises:
            CorruptExtentError: bytes are missing, or are no embedding.
            UnreachableError: the store does not answer.
        """
        known = self.known(rows)
        vectors = np.zeros((len(rows), self.dim), np.float32)
        at = np.flatnonzero(known)
        order = at[np.lexsort((self._place[rows[at]], self._batch[rows[at]]))]
        numbers = self._batch[rows[order]]
        for part in np.split(order, np.flatnonzero(np.diff(numbers)) + 1):
            if len(part):
                batch = self._batches[self._batch[rows[part[0]]]]
                vectors[part] = batch.read(self._place[rows[part]].astype(np.int64))
        # A lifted vector of an item that had none is zero: it has none here either.
        known &= vectors.any(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):  # that is what is looked for
            wrong = ~(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= LENGTH_WITHIN) & known
        if wrong.any():
            raise CorruptExtentError(
                f"the stored embedding of row {int(rows[wrong.argmax()])} is not of length 1; restore the extents from a "
                "backup, or embed the gallery anew."
            )
        return vectors, known
