"""Answers of codes, compared again by the floats that the codes were made of: they lie in the store, codes in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.core.rerank import rerank
from orchestrator.serving.answers import Found
from orchestrator.serving.filters import Picked
from orchestrator.serving.floats import StoredFloats
from orchestrator.serving.queries import QueryPath

Vectors = npt.NDArray[np.float32]


def floats_behind(
    connection: Connection, gallery_id: int, path: QueryPath, depth: int
) -> StoredFloats | None:
    """The stored floats of what serves; None where nothing is compared again (`depth` 0), or where it is no codec."""
    if not depth or path.base is None:
        return None
    return StoredFloats(connection, gallery_id, path.base.id)


def reranked(found: Found, floats: StoredFloats, queries: Vectors, k: int) -> Found:
    """The k best of more answers, by the inner product with stored floats; where a row has none, by its score.

    Args:
        queries: (q, n) float32, by the base model.
    """
    scores, rows = rerank(found.scores, found.rows, queries, lambda wanted: floats.read(wanted)[0], k)
    # Each row is there once, so its place before tells what else is known of it; behind the last answer comes none.
    places = np.zeros(rows.shape, np.int64)
    for query, (before, after) in enumerate(zip(found.rows.tolist(), rows.tolist(), strict=True)):
        place = {row: at for at, row in enumerate(before)}
        places[query] = [place.get(row, 0) for row in after]
    versions = np.where(rows >= 0, np.take_along_axis(found.versions, places, axis=1), 0)
    picked = found.picked
    if picked is not None:
        codes = {name: np.take_along_axis(each, places, axis=1) for name, each in picked.codes.items()}
        picked = Picked(codes, picked.values)
    return replace(found, scores=scores, rows=rows, versions=versions, picked=picked)
