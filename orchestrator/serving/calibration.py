"""Calibrated scores in what is served: which map each stored version has, and its rows laid out for it.

A rollout's map is in its config since its start, so the layout is a function of the ledger, like the vectors. Vectors are
read and written raw everywhere else: only what is searched is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.core.calibration import IDENTITY, Calibration, lay_out, widen
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import ModelRow, RolloutRow
from orchestrator.serving.matrix import HOLDS_ALL, BatchVectors

if TYPE_CHECKING:
    from orchestrator.serving.queries import QueryPath

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


def served_calibrations(connection: Connection, gallery_id: int) -> dict[int, Calibration]:
    """As `calibrations`, for what is served: without maps that make no difference.

    Where a recoding is accepted that left no row behind (`HOLDS_ALL`), no older vector is searched any more. Nor does its
    own map move an answer, until something newer is mixed in; without it the rows are codes, as a code index keeps them.
    """
    holders = [
        each for each in rollout_queries.effective_rollouts(connection, gallery_id) if each.how.holds_vectors
    ]
    first = max((at for at, each in enumerate(holders) if each.config.get(HOLDS_ALL)), default=0)
    if holders[first:] == holders[-1:] and holders and holders[-1].config.get(HOLDS_ALL):
        return {}
    found = {rollout.id: calibration_of(rollout) for rollout in holders[first:]}
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


def batch_rows(rollout: RolloutRow, batch: BatchVectors, width: int, codes: int = 0) -> Vectors:
    """A batch's vectors (m, dim) as rows of an index that is `width` wide, of which `codes` columns are of codes."""
    vectors = batch.vectors
    if vectors.shape[1] == width:
        return vectors
    laid = lay_out(vectors, calibration_of(rollout))
    if laid.shape[1] == width:
        return laid
    rows = np.zeros((len(vectors), width), np.float32)
    first = 0 if batch.coded else codes
    rows[:, first : first + vectors.shape[1]] = laid[:, :-1]
    rows[:, -1] += laid[:, -1]  # where nothing is calibrated, 0 to a column of another kind
    return rows


def fitting(queries: Vectors, width: int, codes: int = 0) -> Vectors:
    """Queries (q, dim) for an index that is `width` wide; `codes`: of their columns, those of codes, which may be all it has."""
    if codes and width <= codes + 1:
        queries = queries[:, :codes]
    return queries if queries.shape[1] == width else widen(queries)


def needs_layout(
    connection: Connection, rollout: RolloutRow, model: ModelRow, path: QueryPath, width: int
) -> bool:
    """Whether an index `width` wide, asked through `path`, is laid out otherwise than a rollout to a model needs it."""
    if path.codes != model.codes:
        return True
    if path.base is not None:  # codes alone, or beside floats
        raw = width in (path.codes, path.codes + path.base.dim)
        return raw == bool(served_calibrations(connection, rollout.gallery_id))
    return width == model.dim and not calibration_of(rollout).identity
