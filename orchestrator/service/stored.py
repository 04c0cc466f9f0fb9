"""A gallery's embeddings by one model: as they are stored, or else made now."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.errors import ConflictError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ModelRow
from orchestrator.service.names import find_gallery
from orchestrator.serving.embedding import Progress, encode_uris
from orchestrator.serving.floats import StoredFloats
from orchestrator.serving.matrix import GalleryMatrix, load_matrix

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def stored_by(
    connection: Connection, gallery: GalleryRow, model: ModelRow
) -> tuple[GalleryMatrix, npt.NDArray[np.bool_]]:
    """The mixture as it was when a model's vectors were last on top, and which rows (n,) are its own, not adapted;
    after a transform to it, all of them.

    While a rollout runs, vectors of several models serve together, and each of them may be asked for.
    """
    rollouts = rollout_queries.effective_rollouts(connection, gallery.id)
    of_model = [r for r in rollouts if r.to_model_id == model.id and r.how.holds_vectors]
    if not of_model:
        raise ConflictError(
            f"gallery {gallery.name!r} does not hold embeddings of {model.name!r}; embed it with them first."
        )
    newer = [r.id for r in rollouts if r.id > of_model[-1].id and r.how.holds_vectors]
    matrix = load_matrix(connection, gallery.id, before=newer[0] if newer else None)
    # Lifted vectors are all that a transform has, and it may be that no item can be read any more.
    if not of_model[-1].how.reembeds:
        return matrix, matrix.version != 0
    return matrix, np.isin(matrix.version, [r.id for r in of_model])


def holder_of(connection: Connection, gallery: GalleryRow, *, floats: bool = False) -> ModelRow:
    """The newest model whose vectors a gallery holds; `floats`: the newest that is no codec.

    Raises:
        ConflictError: there is none.
    """
    before = None
    while (holder := rollout_queries.newest_holder(connection, gallery.id, before)) is not None:
        model = model_queries.model_by_id(connection, holder.to_model_id)
        if not floats or model.base_model_id is None:
            return model
        before = holder.id
    raise ConflictError(
        f"gallery {gallery.name!r} has no embeddings yet; run `hotrefresh gallery embed {gallery.name} --model NAME`."
    )


def floats_of_rows(
    context: Context, gallery_name: str, model: ModelRow, rows: I64, progress: Progress
) -> tuple[F32, set[int]]:
    """(r, d) float32 embeddings of rows by a model, and the places of those that could not be read, which are zero.

    What the gallery does not hold of this model is embedded now.
    """
    with snapshot(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        stored = StoredFloats(connection, gallery.id, model.id)
        gone = log_queries.deleted_rows(connection, gallery.id, log_queries.last_seq(connection, gallery.id))
    floats, own = stored.read(rows)
    own &= ~np.isin(rows, gone)
    floats[~own] = 0
    missing = np.flatnonzero(~own).tolist()
    with snapshot(context.engine) as connection:
        uris = (
            gallery_queries.uris_of_rows(connection, gallery.id, rows[missing].tolist(), model.modality)
            if missing
            else []
        )
    wanted = {place: uri for place, uri in zip(missing, uris, strict=True) if uri is not None}
    failed = set(missing) - set(wanted)
    if wanted:
        places = list(wanted)
        floats[places], unread = encode_uris(context.encoder(model), list(wanted.values()), progress)
        failed |= {places[at] for at in unread}
    return floats, failed
