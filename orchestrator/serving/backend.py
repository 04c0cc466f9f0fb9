"""The index of what a replica serves: the backend that was chosen, told what its rows are."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.index import CODED, Lock, VectorIndex, index_options, make_index
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.serving.calibration import needs_layout
from orchestrator.serving.matrix import GalleryMatrix
from orchestrator.serving.served import Served

FLOAT = "faiss-flat"
"""What serves a gallery that holds no codes where an index of codes was chosen: before its first codec, and after a rollback."""


def index_of(context: Context, backend: str, matrix: GalleryMatrix, lock: Lock) -> VectorIndex:
    """The index of a mixture."""
    shape = matrix.layout.shape
    name = FLOAT if backend in CODED and shape is None else backend
    url = context.engine.url.render_as_string(hide_password=False)
    options = index_options(context.settings, name, url)
    return make_index(name, matrix.vectors, replace(options, code=shape), lock)


def outgrown(connection: Connection, backend: str, served: Served, rollout: RolloutRow) -> bool:
    """Whether what is served has no room for a rollout's vectors, so that it is built anew beside itself.

    Without a coordinate for its calibration, or for its codes; with codes of fewer bits, in an index that keeps bits; with
    floats of another model to compare again.
    """
    model = model_queries.model_by_id(connection, rollout.to_model_id)
    path = served.path
    held, wanted = path.model.code_shape, model.code_shape
    if backend in CODED and held is not None and wanted is not None and wanted.loops > held.loops:
        return True
    if served.floats is not None and model.base_model_id != path.model.base_model_id:
        return True
    return needs_layout(connection, rollout, model, path, served.index.dim)
