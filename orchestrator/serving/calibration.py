"""Calibrated scores in what is served: which map each stored version has, and its rows laid out for it.

A rollout's map is in its config since its start, so the layout is a function of the ledger, like the vectors. Vectors are
read and written raw everywhere else: only what is searched is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.core.calibration import IDENTITY, Calibration, lay_out, widen
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def calibration_of(rollout: RolloutRow) -> Calibration:
    """The map of the scores of the vectors that a rollout's batches bring."""
    return Calibration.of(rollout.config.get("calibration"))


def calibrations(connection: Connection, gallery_id: int, *more: RolloutRow) -> dict[int, Calibration]:
    """Version (a rollout's id) -> its map, where it is not the identity.

    Args:
        more: rollouts whose vectors are in use or will be, whatever their state is by now.
    """
    rollouts = [*rollout_queries.effective_rollouts(connection, gallery_id), *more]
    found = {rollout.id: calibration_of(rollout) for rollout in rollouts if rollout.how.holds_vectors}
    return {version: each for version, each in found.items() if not each.identity}


def calibrated(vectors: Vectors, version: Rows, maps: Mapping[int, Calibration]) -> Vectors:
    """A mixture as it is searched: (n, dim) as it is where there are no maps, else a copy, (n, dim + 1).

    Rows without a vector (version 0) are zero in every coordinate.
    """
    if not maps:
        return vectors
    rows = lay_out(vectors, IDENTITY)
    for each, calibration in maps.items():
        chosen = version == each
        rows[chosen] = lay_out(vectors[chosen], calibration)
    rows[version == 0] = 0
    return rows


def batch_rows(rollout: RolloutRow, vectors: Vectors, width: int) -> Vectors:
    """A batch's vectors (m, dim) as rows of an index that is `width` wide."""
    return vectors if vectors.shape[1] == width else lay_out(vectors, calibration_of(rollout))


def fitting(queries: Vectors, width: int) -> Vectors:
    """Queries (q, dim) for an index that is `width` wide."""
    return queries if queries.shape[1] == width else widen(queries)


def needs_layout(rollout: RolloutRow, queries_dim: int, width: int) -> bool:
    """Whether an index `width` wide, of vectors of `queries_dim`, has no room yet for the calibration of a rollout."""
    return width == queries_dim and not calibration_of(rollout).identity
