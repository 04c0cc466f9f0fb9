"""Statements that a server of searches keeps in memory, so that it goes on answering while the ledger is away."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all
from orchestrator.ledger.rows import GalleryRow, ItemRow


def items_from(connection: Connection, gallery_id: int, first_row: int, limit: int) -> list[ItemRow]:
    """The items from a row on, in order of row; deleted ones are left out."""
    return fetch_all(
        connection,
        ItemRow,
        "items_from",
        """SELECT row, key, uri, label FROM item
           WHERE gallery_id = :gallery AND row >= :first_row AND deleted_at IS NULL ORDER BY row LIMIT :limit""",
        gallery=gallery_id,
        first_row=first_row,
        limit=limit,
    )


def late_items(connection: Connection, rollout_id: int, first_rank: int, n: int) -> list[ItemRow]:
    """The items that were added or changed after planning and have one of these ranks."""
    return fetch_all(
        connection,
        ItemRow,
        "late_items",
        """SELECT i.row, i.key, i.uri, i.label FROM late_item l JOIN rollout r ON r.id = l.rollout_id
           JOIN item i ON i.gallery_id = r.gallery_id AND i.row = l.row
           WHERE l.rollout_id = :rollout AND l.rank >= :first_rank AND l.rank < :behind""",
        rollout=rollout_id,
        first_rank=first_rank,
        behind=first_rank + n,
    )


def late_items_of_gallery(connection: Connection, gallery_id: int) -> list[ItemRow]:
    """All items of a gallery that were added or changed after a planning."""
    return fetch_all(
        connection,
        ItemRow,
        "late_items_of_gallery",
        """SELECT i.row, i.key, i.uri, i.label FROM item i
           WHERE i.gallery_id = :gallery AND i.deleted_at IS NULL AND i.row IN (
               SELECT l.row FROM late_item l JOIN rollout r ON r.id = l.rollout_id WHERE r.gallery_id = :gallery)""",
        gallery=gallery_id,
    )


def changed_items(connection: Connection, gallery_id: int) -> list[ItemRow]:
    """All items of a gallery that ever changed, as they are now; deleted ones as well. There is an index of them."""
    return fetch_all(
        connection,
        ItemRow,
        "changed_items",
        """SELECT row, key, uri, label FROM item WHERE gallery_id = :gallery AND first_content IS NOT NULL ORDER BY row""",
        gallery=gallery_id,
    )


def models_of_rollouts(connection: Connection, gallery_id: int) -> dict[int, str]:
    """Rollout → name of the model it brings, of one gallery."""
    result = execute(
        connection,
        "models_of_rollouts",
        """SELECT r.id, m.name FROM rollout r JOIN model m ON m.id = r.to_model_id WHERE r.gallery_id = :gallery""",
        gallery=gallery_id,
    )
    return {int(rollout): str(model) for rollout, model in result}


def searchable_galleries(connection: Connection) -> list[GalleryRow]:
    """Galleries that have been embedded: those that a server should hold."""
    return fetch_all(
        connection,
        GalleryRow,
        "searchable_galleries",
        """SELECT g.* FROM gallery g JOIN serving s ON s.gallery_id = g.id AND s.valid_to IS NULL ORDER BY g.id""",
    )
