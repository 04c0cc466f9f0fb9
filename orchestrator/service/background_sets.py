"""A gallery's background set: items that answer no query, by which scores are made comparable. docs/MATCHING.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from orchestrator.context import Context
from orchestrator.core.background import BETA, NEIGHBOUR
from orchestrator.errors import NotFoundError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import backgrounds as background_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, RolloutRow
from orchestrator.service.names import find_gallery
from orchestrator.serving.background import why_not_adjusted
from orchestrator.serving.embedding import Progress, no_progress

MOST_ITEMS = 10_000


@dataclass(frozen=True)
class BackgroundSet:
    """A gallery's set as it is shown. `rejected`: items of the source that could not be read when it was set."""

    gallery: str
    source: str
    items: int
    neighbour: int
    beta: float
    created_at: datetime | None
    rejected: int = 0
    replaced: bool = False


def show_background(context: Context, gallery_name: str) -> BackgroundSet:
    """The set that a gallery has now.

    Raises:
        NotFoundError: no such gallery, or it has none.
    """
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        row = background_queries.background_set_of(connection, gallery.id)
    if row is None:
        raise _none(gallery)
    return BackgroundSet(gallery.name, row.source, len(row.uris), row.neighbour, row.beta, row.created_at)


def remove_background(context: Context, gallery_name: str) -> None:
    """Rollouts that are evaluated from now on have no adjusted thresholds; what was measured stays.

    Raises:
        NotFoundError: no such gallery, or it has none.
    """
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        if not background_queries.remove_background_set(connection, gallery.id):
            raise _none(gallery)
        rollout_queries.write_audit(
            connection, actor=context.actor, action="background.removed", target=gallery.name, after={}
        )


def set_background(
    context: Context,
    gallery_name: str,
    source: str,
    *,
    split: str | None = None,
    neighbour: int = NEIGHBOUR,
    beta: float = BETA,
    progress: Progress = no_progress,
) -> BackgroundSet:
    """Give a gallery a background set, in place of the one it has. Each item is read once; those that cannot be are left out.

    Raises:
        NotFoundError: no such gallery.
        UsageError: other modality than the gallery's, fewer readable items than `neighbour`, more than MOST_ITEMS, items that
            are in the gallery or its query sets, or a number that is none.
    """
    from models.datasets import list_items, modality_of, storable

    if not (math.isfinite(beta) and beta >= 0):
        raise UsageError(f"beta is a number of at least 0, not {beta}.")
    if neighbour < 1:
        raise UsageError(f"the neighbour is at least 1, not {neighbour}.")
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
    if (modality := modality_of(source)) != gallery.modality:
        raise UsageError(
            f"gallery {gallery.name!r} holds {gallery.modality}s, but {source!r} holds {modality}s."
        )
    uris = list(dict.fromkeys(item.uri for item in list_items(source, split).items))
    if len(uris) > MOST_ITEMS:
        raise UsageError(
            f"{source!r} holds {len(uris)} items; a background has {MOST_ITEMS} at most: give a part of it."
        )
    readable = _readable(uris, progress)
    if len(readable) < neighbour:
        raise UsageError(
            f"{source!r} holds {len(readable)} usable items, and a query's level is its score with the {neighbour}th nearest of "
            "them: give more items, or a smaller --neighbour."
        )
    origin = storable(source if split is None else f"{source}:{split}")
    with transaction(context.engine) as connection:
        if own := background_queries.count_items_of(connection, gallery.id, readable):
            raise UsageError(
                f"{own} items or queries of gallery {gallery.name!r} are in {source!r} too: a background answers no query; "
                "give items that are not in the gallery."
            )
        replaced = background_queries.remove_background_set(connection, gallery.id)
        background_queries.insert_background_set(
            connection, gallery_id=gallery.id, source=origin, uris=readable, neighbour=neighbour, beta=beta
        )
        after = {"items": len(readable), "source": origin, "neighbour": neighbour, "beta": beta}
        rollout_queries.write_audit(
            connection, actor=context.actor, action="background.set", target=gallery.name, after=after
        )
        row = background_queries.background_set_of(connection, gallery.id)
    created_at = None if row is None else row.created_at
    return BackgroundSet(
        gallery.name,
        origin,
        len(readable),
        neighbour,
        beta,
        created_at,
        len(uris) - len(readable),
        replaced,
    )


def why_none(context: Context, rollout: RolloutRow) -> str:
    """Why a rollout has no adjusted thresholds."""
    with transaction(context.engine) as connection:
        reason = why_not_adjusted(connection, rollout)
        row = background_queries.background_set_of(connection, rollout.gallery_id)
    if reason is not None:
        return f"rollout {rollout.id} has no adjusted thresholds: {reason}"
    if row is None:
        return (
            f"rollout {rollout.id} has no adjusted thresholds: its gallery has no background set "
            "(`hotrefresh queryset background`)"
        )
    return (
        f"rollout {rollout.id} has no adjusted thresholds: it was evaluated before its gallery had a background set, no "
        "query set knows what is right, a first answer is an item without a vector, or fewer than "
        f"{row.neighbour} items of the set can still be read"
    )


def _readable(uris: list[str], progress: Progress) -> list[str]:
    from models.datasets import read_item
    from models.errors import ItemError

    found = []
    for done, uri in enumerate(uris, 1):
        try:
            read_item(uri)
            found.append(uri)
        except ItemError:
            pass  # left out and counted
        progress(done, len(uris))
    return found


def _none(gallery: GalleryRow) -> NotFoundError:
    return NotFoundError(
        f"gallery {gallery.name!r} has no background set; give it one: "
        f"`hotrefresh queryset background {gallery.name} SOURCE`."
    )
