"""One search, from the ledger and the extents as they stand: what a replica would answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.errors import ItemError
from orchestrator.context import Context
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.service.listings import item_uri
from orchestrator.service.names import find_gallery
from orchestrator.serving.replica import Replica


@dataclass(frozen=True)
class Query:
    """What to search by: exactly one of these."""

    text: str | None = None
    image: Path | None = None
    key: str | None = None


@dataclass(frozen=True)
class NamedHit:
    """One answer; `version` is the model whose embedding of the item was compared."""

    rank: int
    score: float
    key: str
    label: str | None
    uri: str
    version: str


@dataclass(frozen=True)
class Found:
    """The answers, the model that encoded the query, and how much of the gallery that model has embedded."""

    gallery: str
    model: str
    coverage_ratio: float
    seq: int
    hits: tuple[NamedHit, ...]


def search(context: Context, gallery_name: str, query: Query, k: int) -> Found:
    """Search a gallery once.

    Raises:
        NotFoundError: no such gallery or item.
        ConflictError: the gallery has no embeddings yet, or holds another kind of items than the query is.
        UsageError: the query's picture cannot be read.
    """
    from models.datasets import read_item

    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
    modality = "text" if query.text is not None else "image" if query.image is not None else gallery.modality
    if modality != gallery.modality:
        wanted = "--image FILE" if gallery.modality == "image" else "--text TEXT"
        raise ConflictError(
            f"gallery {gallery.name!r} holds {gallery.modality}s; search it with {wanted} or --key KEY."
        )
    try:
        content = query.text if query.text is not None else read_item(_uri(context, gallery_name, query))
        with Replica(context, gallery) as replica:
            answer = replica.search([content], k)[0]
    except ItemError as error:
        raise UsageError(f"the query cannot be embedded: {error}") from error
    versions = _versions(context, {hit.rollout_id for hit in answer.hits})
    hits = tuple(
        NamedHit(rank, hit.score, hit.key, hit.label, hit.uri, versions[hit.rollout_id])
        for rank, hit in enumerate(answer.hits, 1)
    )
    return Found(gallery.name, answer.model, answer.coverage_ratio, answer.seq, hits)


def _uri(context: Context, gallery_name: str, query: Query) -> str:
    if query.image is not None:
        from models.datasets.folder import uri_of

        return uri_of(query.image)
    assert query.key is not None
    return item_uri(context, gallery_name, query.key)


def _versions(context: Context, rollout_ids: set[int]) -> dict[int, str]:
    """The model of each rollout's embeddings, by name."""
    names = {}
    with transaction(context.engine) as connection:
        for rollout_id in rollout_ids:
            row = rollout_queries.rollout_by_id(connection, rollout_id)
            assert row is not None, f"a vector came from rollout {rollout_id}, which the ledger does not hold"
            names[rollout_id] = model_queries.model_by_id(connection, row.to_model_id).name
    return names
