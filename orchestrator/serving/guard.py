"""The answer of two models for queries at risk, while a refresh runs (`core.guard`).

The new model's answer is looked at first. Where the best renewed and the best stored row are close, the old model embeds
the query too and searches the rows that still hold its vectors, and no others; the new model's best renewed rows are merged
in. All searches of one answer see one mixture. No certificate of a codec holds a guard: floats and codes are of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.guard import Guard
from orchestrator.index import VectorIndex
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.serving.calibration import fitting
from orchestrator.serving.queries import QueryPath, mapped, query_path

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Guarded = tuple[Vectors, Rows, Bools]
"""Scores and rows (q, k), and which of the queries are guarded (q,)."""


@dataclass(frozen=True)
class RolloutGuard:
    """A rollout's guard, and what made the old system's query vectors."""

    guard: Guard
    path: QueryPath
    rollout_id: int


def guard_of(connection: Connection, rollout: RolloutRow | None) -> RolloutGuard | None:
    """None where the rollout that serves has none."""
    stored = None if rollout is None else rollout.config.get("guard")
    if rollout is None or stored is None:
        return None
    assert rollout.from_model_id is not None, "the first embedding has no old system"
    older = [
        row
        for row in rollout_queries.effective_rollouts(connection, rollout.gallery_id)
        if row.id < rollout.id
    ]
    path = query_path(connection, rollout.from_model_id, older[-1] if older else None)
    return RolloutGuard(Guard.of(stored), path, rollout.id)


class GuardedSearch:
    """One search of decoded `queries`: `answer` until it needs nothing more, `encode` in between, without the lock.

    A query that is None came as a vector: there is nothing for the old model to embed, and its answer is not guarded.
    """

    def __init__(self, context: Context, guard: RolloutGuard, queries: Sequence[Any]) -> None:
        self._context = context
        self.guard = guard
        self._queries = queries
        self._known = np.array([query is not None for query in queries])
        self._old: dict[int, Vectors] = {}
        self._wanted: list[int] = []

    def answer(
        self,
        index: VectorIndex,
        version: Rows,
        asked: Vectors,
        scores: Vectors,
        rows: Rows,
        allowed: Bools | None = None,
    ) -> Guarded | None:
        """The answers with those at risk in their guarded form; None when `encode` must come first.

        Args:
            version: (n,) int64, of each row. asked: (q, width) float32, as the index was asked.
            scores, rows: (q, k), its answers.
            allowed: (n,) bool, the rows that may be answered, where not all may.
        """
        may = version != 0 if allowed is None else allowed & (version != 0)
        renewed = may & (version == self.guard.rollout_id)
        stored = may & ~renewed
        guarded = np.zeros(len(asked), np.bool_)
        if not renewed.any() or not stored.any():
            return scores, rows, guarded
        margins = best_of(index, asked, renewed, scores, rows) - best_of(index, asked, stored, scores, rows)
        guarded = self.guard.guard.at_risk(margins) & self._known
        at = np.flatnonzero(guarded)
        self._wanted = [int(query) for query in at if int(query) not in self._old]
        if self._wanted:
            return None
        if len(at):
            scores, rows = scores.copy(), rows.copy()
            scores[at], rows[at] = self._merged(index, at, asked[at], stored, renewed, rows.shape[1])
        return scores, rows, guarded

    def encode(self) -> None:
        """Embed what `answer` asked for by the old system."""
        path = self.guard.path
        encoder = self._context.encoder(path.embedder)
        prepared = [encoder.preprocess(self._queries[query]) for query in self._wanted]
        vectors = mapped(self._context, path, encoder.encode(prepared))
        self._old.update(zip(self._wanted, vectors, strict=True))

    def _merged(
        self, index: VectorIndex, at: Rows, asked: Vectors, stored: Bools, renewed: Bools, k: int
    ) -> tuple[Vectors, Rows]:
        old = fitting(np.stack([self._old[int(query)] for query in at]), asked.shape[1])
        found = [index.search(old, k, allowed=stored), index.search(asked, k, allowed=renewed)]
        rows = np.concatenate([found[0][1], found[1][1]], axis=1)
        scores = np.concatenate([found[0][0], found[1][0]], axis=1)
        scores[
            rows < 0
        ] = -np.inf  # before the map: what an index puts there may be the smallest number there is
        merge = self.guard.guard.merge
        scores[:, k:] = np.float32(merge.scale) * scores[:, k:] + np.float32(merge.offset)
        # By falling score, then by rising row, like any search.
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def best_of(
    index: VectorIndex, asked: Vectors, allowed: Bools, scores: Vectors, rows: Rows
) -> npt.NDArray[np.float64]:
    """(q,) float64: the best score among the allowed rows, -inf without one.

    Read off the answers (q, k) where these hold an allowed row, and searched for where they do not.
    """
    held = np.where(rows >= 0, allowed[rows], False)
    best = np.take_along_axis(scores, held.argmax(axis=1)[:, None], 1)[:, 0].astype(np.float64)
    missing = np.flatnonzero(~held.any(axis=1))
    if len(missing):
        found, found_rows = index.search(asked[missing], 1, allowed=allowed)
        best[missing] = np.where(found_rows[:, 0] >= 0, found[:, 0], -np.inf)
    return best
