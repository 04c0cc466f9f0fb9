"""Answers of codes put in the order of their floats: a short list found fast, compared again where it counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from orchestrator.core.merge import merge_top_k

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def rerank(
    scores: F32, rows: I64, queries: F32, floats_of_rows: Callable[[I64], F32], k: int
) -> tuple[F32, I64]:
    """The k best of each query's R candidates by the inner product of floats: scores falling, equal ones by the lower row.

    Args:
        scores, rows: (q, R) float32 and int64, what a search of codes answered; -inf and -1 where there are fewer.
        queries: (q, n) float32.
        floats_of_rows: rows (r,), rising and each once -> (r, n) float32; a row of zeros where there are none, which keeps
            the score of its code.

    Returns: (q, k) float32 and int64; -inf and -1 where there are fewer.
    """
    wanted = np.unique(rows[rows >= 0])
    floats = floats_of_rows(wanted) if len(wanted) else np.zeros((0, queries.shape[1]), np.float32)
    there: npt.NDArray[np.bool_] = np.asarray(floats.any(axis=1))
    again = scores.copy()
    for query, candidates in enumerate(rows):
        found = np.flatnonzero(candidates >= 0)
        places = np.searchsorted(wanted, candidates[found])
        known = there[places]
        again[query, found[known]] = floats[places[known]] @ queries[query]
    return merge_top_k([again], [rows], k)
