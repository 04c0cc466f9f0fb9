"""The best answers of several shards as one list: a shard holds other rows than the others, on this machine or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.core import keys

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

NO_ROW = -1
NO_SCORE = np.float32(-np.inf)


def merge_top_k(scores: Sequence[F32], rows: Sequence[I64], k: int) -> tuple[F32, I64]:
    """The k best of every query: scores falling, equal scores by the lower row.

    Args:
        scores: of each shard (q, its k) float32, in any order within a query.
        rows: of each shard (q, its k) int64, counted over the whole gallery; negative where the shard has no more.
            A row is in one shard only.

    Returns: scores (q, k) float32 and rows (q, k) int64; -inf and -1 where there are fewer than k.
    Raises ValueError for k < 1, no shard, or shards whose shapes do not fit.

    The k best of the whole are among the k best of the shards, so nothing is lost where each shard gives k.
    """
    if k < 1 or not scores or len(scores) != len(rows):
        raise ValueError(f"{len(scores)} lists of scores and {len(rows)} of rows cannot make the {k} best")
    if any(s.shape != r.shape or len(s) != len(scores[0]) for s, r in zip(scores, rows, strict=True)):
        raise ValueError("the shards' scores and rows differ in shape or in the number of queries")
    every, places = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    packed = np.where(places >= 0, keys.pack(every, np.maximum(places, 0)), keys.EMPTY)
    packed.sort(axis=1)
    best = np.full((len(packed), k), keys.EMPTY, np.uint64)
    best[:, : packed.shape[1]] = packed[:, :k]
    found = best != keys.EMPTY
    return (
        np.where(found, keys.scores_of(best), NO_SCORE).astype(np.float32),
        np.where(found, keys.rows_of(best).astype(np.int64), NO_ROW),
    )
