"""Statements about items in other modalities than their gallery's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute


def note_modalities(connection: Connection, gallery_id: int, modalities: Iterable[str]) -> None:
    """Some items of a gallery are of these modalities too; its own, and those that are known, may be among them."""
    execute(
        connection,
        "note_modalities",
        """UPDATE gallery SET other_modalities =
               (SELECT coalesce(array_agg(DISTINCT m ORDER BY m), '{}')
                FROM unnest(other_modalities || CAST(:modalities AS text[])) AS m WHERE m <> modality)
           WHERE id = :gallery""",
        modalities=sorted(set(modalities)),
        gallery=gallery_id,
    )


def add_uris(connection: Connection, gallery_id: int, items: Sequence[tuple[int, Mapping[str, str]]]) -> None:
    """Give rows (row, modality -> URI) content in other modalities than the gallery's, beside what they have or in its place."""
    execute(
        connection,
        "add_uris",
        """UPDATE item SET other_uris = coalesce(item.other_uris, '{}') || CAST(new.uris AS jsonb)
           FROM unnest(CAST(:rows AS bigint[]), CAST(:uris AS text[])) AS new (row, uris)
           WHERE item.gallery_id = :gallery AND item.row = new.row""",
        gallery=gallery_id,
        rows=[row for row, _ in items],
        uris=[json.dumps(dict(uris)) for _, uris in items],
    )


def count_without(connection: Connection, gallery_id: int, modality: str) -> int:
    """Items of a gallery that have nothing in a modality which is not the gallery's own."""
    return int(
        execute(
            connection,
            "count_without",
            """SELECT count(*) FROM item
               WHERE gallery_id = :gallery AND deleted_at IS NULL AND other_uris ->> CAST(:modality AS text) IS NULL""",
            gallery=gallery_id,
            modality=modality,
        ).scalar_one()
    )


def uris_of_item(connection: Connection, gallery_id: int, row: int) -> dict[str, str]:
    """Modality -> URI of an item, the gallery's own first; empty where there is no item (any more)."""
    result = execute(
        connection,
        "uris_of_item",
        """SELECT modality, uri FROM (
               SELECT g.modality, i.uri, 0 AS place FROM item i JOIN gallery g ON g.id = i.gallery_id
               WHERE i.gallery_id = :gallery AND i.row = :row AND i.deleted_at IS NULL
               UNION ALL
               SELECT o.key, o.value, 1 FROM item i CROSS JOIN LATERAL jsonb_each_text(i.other_uris) AS o
               WHERE i.gallery_id = :gallery AND i.row = :row AND i.deleted_at IS NULL) AS found
           ORDER BY place, modality""",
        gallery=gallery_id,
        row=row,
    )
    return {str(modality): str(uri) for modality, uri in result}
