"""What several backends do with rows and answers."""

from __future__ import annotations

import numpy as np

from orchestrator.core.merge import NO_ROW, NO_SCORE, merge_top_k
from orchestrator.core.metrics import top_k
from orchestrator.index import Rows, Vectors


def last_of_each(rows: Rows, vectors: Vectors) -> tuple[Rows, Vectors]:
    """Each row once, rising, with the last vector given for it: what a backend needs that takes no row twice."""
    rows = np.asarray(rows, np.int64)
    each, from_end = np.unique(rows[::-1], return_index=True)
    return each, np.ascontiguousarray(vectors, np.float32)[len(rows) - 1 - from_end]


def among(queries: Vectors, vectors: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
    """The k best of `vectors` (m, dim), which stand in `rows` (m,), by comparison with each."""
    if not len(rows) or not len(queries):
        return padded(np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64), k)
    scores, places = top_k(queries, vectors, min(k, len(rows)))
    return padded(scores, rows[places], k)


def padded(scores: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
    """Answers of k columns: what is missing is row -1."""
    missing = k - scores.shape[1]
    if missing <= 0:
        return scores[:, :k], rows[:, :k]
    width = ((0, 0), (0, missing))
    return (
        np.pad(scores, width, constant_values=NO_SCORE),
        np.pad(rows, width, constant_values=NO_ROW),
    )


def ordered(scores: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
    """One backend's answers in the order of the protocol: scores falling, equal ones by the lower row, k columns."""
    return merge_top_k([scores], [rows], k)
