"""The index of what a replica serves: the backend that was chosen, told what its rows are."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.context import Context
from orchestrator.index import CODED, Lock, VectorIndex, index_options, make_index
from orchestrator.ledger.rows import ModelRow
from orchestrator.serving.matrix import GalleryMatrix
from orchestrator.serving.queries import QueryPath

FLOAT = "faiss-flat"
"""What serves a gallery that holds no codes where an index of codes was chosen: before its first codec, and after a rollback."""


def index_of(context: Context, backend: str, matrix: GalleryMatrix, lock: Lock) -> VectorIndex:
    """The index of a mixture."""
    shape = matrix.layout.shape
    name = FLOAT if backend in CODED and shape is None else backend
    url = context.engine.url.render_as_string(hide_password=False)
    options = index_options(context.settings, name, url)
    return make_index(name, matrix.vectors, replace(options, code=shape), lock)


def too_coarse(backend: str, path: QueryPath, model: ModelRow) -> bool:
    """Whether an index of the codes that `path` makes has no room for those of another codec, which have more bits."""
    held, wanted = path.model.code_shape, model.code_shape
    if backend not in CODED or held is None or wanted is None:
        return False
    return wanted.loops > held.loops
