"""One search, from the ledger and the extents as they stand: what a replica would answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import ItemError
from orchestrator.client import answers
from orchestrator.context import Context
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow
from orchestrator.service.names import find_gallery, find_item
from orchestrator.serving.answers import Answer
from orchestrator.serving.asked_item import AskedItem, content_in
from orchestrator.serving.filters import attributes_of
from orchestrator.serving.matching import check_matchable, deep, matched, views_of
from orchestrator.serving.replica import Replica
from orchestrator.serving.towers import tower_path


@dataclass(frozen=True)
class Query:
    """What to search by: exactly one of these. `vector`: (dim,) of the model that serves, of any length but zero."""

    text: str | None = None
    image: Path | None = None
    video: Path | None = None
    key: str | None = None
    vector: npt.NDArray[np.floating[Any]] | None = None


def search(
    context: Context,
    gallery_name: str,
    query: Query,
    k: int,
    where: Mapping[str, str | Sequence[str]] | None = None,
    rerank: int | None = None,
    *,
    match: bool = False,
) -> answers.Answer:
    """Search a gallery once. `rerank`: of codes, so many of the best are compared again by stored floats; None: as set.

    `match`: the best are verified by local matching and ranked by it (`serving.matching`); the query is a picture or a key.

    Raises:
        NotFoundError: no such gallery or item.
        ConflictError: the gallery has no embeddings yet, or holds another kind of items than the query is, or than can match.
        UsageError: the query's picture or video cannot be read; `where` names an attribute that there is not; to match a
            vector, or without OpenCV.
    """
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
    _check_kind(gallery, query)
    if match:
        if query.vector is not None:
            raise UsageError("a vector shows no points to match; search by --image FILE or --key KEY.")
        check_matchable(gallery)
        if query.text is not None:
            raise UsageError("a text shows no points to match; search by --image FILE or --key KEY.")
    try:
        if query.vector is not None:
            with Replica(context, gallery, rerank=rerank) as replica:
                model = replica.path.embedder
                vector = unit(query.vector, model.name, model.dim)
                answer = replica.search_vectors(vector[None], k, where)[0]
        else:
            kind, content = _content(context, gallery, query)
            views = views_of(content_in(content, "image")) if match else [content]
            with Replica(context, gallery, rerank=rerank) as replica:
                found = _asked(
                    context, replica, "image" if match else kind, views, deep(k) if match else k, where
                )
            answer = matched(found, views, k) if match else found[0]
    except ItemError as error:
        raise UsageError(f"the query cannot be embedded: {error}") from error
    return _named(context, gallery, answer)


def unit(given: Any, model: str, dim: int) -> npt.NDArray[np.float32]:
    """(dim,) float32 of length 1 out of a vector of the model that serves, of any length but zero.

    Raises:
        ConflictError: it has another dimension.
        UsageError: a number is not finite, or all are zero.
    """
    vector = np.asarray(given, np.float64)
    if vector.shape != (dim,):
        raise ConflictError(
            f"the vector has the shape {vector.shape}, and {model!r}, which serves, makes ({dim},)."
        )
    if not np.isfinite(vector).all() or not vector.any():
        raise UsageError("the vector must be finite, and not zero.")
    vector = vector / np.abs(vector).max()  # its square could be too large, or vanish
    found: npt.NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return found


def _check_kind(gallery: GalleryRow, query: Query) -> None:
    """Raises ConflictError for a picture or a video where no item is one. Texts are asked of galleries of anything."""
    asked = {"image": query.image, "video": query.video}
    given = next((name for name, value in asked.items() if value is not None), gallery.modality)
    if given not in gallery.modalities:
        wanted = "".join(f"--{each} FILE, " for each in gallery.modalities if each != "text")
        raise ConflictError(
            f"gallery {gallery.name!r} holds {gallery.modality}s; search it with {wanted}--text TEXT or --key KEY."
        )


def _asked(
    context: Context,
    replica: Replica,
    modality: str | None,
    contents: Sequence[Any],
    k: int,
    where: Mapping[str, str | Sequence[str]] | None,
) -> list[Answer]:
    """Answers to contents of one modality, by a tower where it is not that of the model; None: items, which have the model's."""
    own = replica.path.spatial.modality
    if modality in (None, own):
        return replica.search([content_in(content, own) for content in contents], k, where)
    path = tower_path(context, replica, modality)
    encoder = context.encoder(path.embedder)
    vectors = encoder.encode([encoder.preprocess(content) for content in contents])
    return replica.search_vectors(vectors, k, where, path_ids=path.ids)


def _content(context: Context, gallery: GalleryRow, query: Query) -> tuple[str | None, Any]:
    """What is asked by, and its modality; None of an item, which may have several."""
    from models.datasets import clip_files, folder, read_item

    if query.text is not None:
        return "text", query.text
    if query.image is not None:
        return "image", read_item(folder.uri_of(query.image))
    if query.video is not None:
        return "video", read_item(clip_files.uri_of(query.video))
    assert query.key is not None
    with transaction(context.engine) as connection:
        item = find_item(connection, gallery, query.key)
    return None, AskedItem(context, gallery, item.row, item.uri)


def _named(context: Context, gallery: GalleryRow, answer: Answer) -> answers.Answer:
    """With the model of each hit's embedding, by name, and what the item was when it was embedded."""
    names = {}
    with transaction(context.engine) as connection:
        for rollout_id in {hit.rollout_id for hit in answer.hits}:
            row = rollout_queries.rollout_by_id(connection, rollout_id)
            assert row is not None, f"a vector came from rollout {rollout_id}, which the ledger does not hold"
            names[rollout_id] = model_queries.model_by_id(connection, row.to_model_id).name
        versions = {hit.row: hit.rollout_id for hit in answer.hits}
        attributes = attributes_of(connection, gallery.id, versions, answer.seq)
    hits = tuple(
        answers.Hit(
            hit.row,
            hit.key,
            hit.uri,
            hit.label,
            hit.score,
            hit.rollout_id,
            names[hit.rollout_id],
            attributes[hit.row],
            hit.matches,
            hit.verified,
        )
        for hit in answer.hits
    )
    return answers.Answer(
        gallery.name,
        answer.model,
        answer.rollout_id,
        answer.seq,
        answer.coverage_ratio,
        hits,
        guarded=answer.guarded,
    )
