"""Statements about galleries, their items, query sets and relevance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import copy_rows, execute, fetch_all, fetch_one
from orchestrator.ledger.rows import GalleryRow, ItemRow, QueryRow, QuerySetRow


def insert_gallery(connection: Connection, *, name: str, modality: str, source: str) -> int | None:
    """Create a gallery with its log row; None where the name is taken."""
    return execute(
        connection,
        "insert_gallery",
        """WITH made AS (INSERT INTO gallery (name, modality, source) VALUES (:name, :modality, :source)
                         ON CONFLICT (name) DO NOTHING RETURNING id),
                log AS (INSERT INTO gallery_log (gallery_id) SELECT id FROM made)
           SELECT id FROM made""",
        name=name,
        modality=modality,
        source=source,
    ).scalar_one_or_none()


def copy_items(
    connection: Connection,
    gallery_id: int,
    items: Iterable[
        tuple[int, str, str, str | None]
        | tuple[int, str, str, str | None, Mapping[str, str], Mapping[str, str]]
    ],
) -> int:
    """COPY items (row, key, uri, label and, where there are any, attributes and URIs by other modalities) and set the count;
    rows are dense from 0.
    """
    count = copy_rows(
        connection,
        "copy_items",
        "item (gallery_id, row, key, uri, label, attributes, other_uris)",
        ((gallery_id, *item[:4], *_documents(*item[4:])) for item in items),
    )
    execute(
        connection,
        "count_items",
        "UPDATE gallery SET n_items = n_items + :count WHERE id = :gallery",
        count=count,
        gallery=gallery_id,
    )
    return count


def _documents(
    attributes: Mapping[str, str] | None = None, other_uris: Mapping[str, str] | None = None
) -> tuple[str, str | None]:
    return json.dumps(dict(attributes or {})), json.dumps(dict(other_uris)) if other_uris else None


def gallery_by_name(connection: Connection, name: str) -> GalleryRow | None:
    """A gallery by its name."""
    return fetch_one(
        connection, GalleryRow, "gallery_by_name", "SELECT * FROM gallery WHERE name = :name", name=name
    )


def gallery_by_id(connection: Connection, gallery_id: int) -> GalleryRow:
    """A gallery that is known to exist."""
    row = fetch_one(
        connection, GalleryRow, "gallery_by_id", "SELECT * FROM gallery WHERE id = :id", id=gallery_id
    )
    assert row is not None, f"the ledger references gallery {gallery_id}, which it does not hold"
    return row


def list_galleries(connection: Connection) -> list[GalleryRow]:
    """All galleries, oldest first."""
    return fetch_all(connection, GalleryRow, "list_galleries", "SELECT * FROM gallery ORDER BY id")


# In the next two, one look-up in the primary key a row, whatever the planner believes: after a large COPY and before the
# table's first statistics it takes a gallery for a handful of items, and `row = ANY(…)` would read all of them each time.


def items_of_rows(connection: Connection, gallery_id: int, rows: Sequence[int]) -> list[ItemRow]:
    """The items of these rows, in no particular order."""
    return fetch_all(
        connection,
        ItemRow,
        "items_of_rows",
        """SELECT found.* FROM unnest(CAST(:rows AS bigint[])) AS wanted (row) CROSS JOIN LATERAL
             (SELECT row, key, uri, label FROM item WHERE gallery_id = :gallery AND row = wanted.row OFFSET 0) AS found""",
        gallery=gallery_id,
        rows=list(map(int, rows)),
    )


def uris_of_rows(
    connection: Connection, gallery_id: int, rows: Sequence[int], modality: str
) -> list[str | None]:
    """The URI of each of these rows in a modality, None where there is no item (any more): what a worker asks for each batch.

    They come as one array, because a row of a result and an object for each item would cost more than finding them.
    """
    found = execute(
        connection,
        "uris_of_rows",
        """WITH own AS MATERIALIZED (SELECT modality = CAST(:modality AS text) AS wanted FROM gallery WHERE id = :gallery)
           SELECT array_agg((SELECT CASE WHEN (SELECT wanted FROM own) THEN uri ELSE other_uris ->> CAST(:modality AS text) END
                             FROM item WHERE gallery_id = :gallery AND row = wanted.row AND deleted_at IS NULL) ORDER BY place)
           FROM unnest(CAST(:rows AS bigint[])) WITH ORDINALITY AS wanted (row, place)""",
        gallery=gallery_id,
        rows=list(map(int, rows)),
        modality=modality,
    ).scalar_one()
    return list(found or ())


def item_by_key(connection: Connection, gallery_id: int, key: str) -> ItemRow | None:
    """An item by its key."""
    return fetch_one(
        connection,
        ItemRow,
        "item_by_key",
        "SELECT row, key, uri, label FROM item WHERE gallery_id = :gallery AND key = :key AND deleted_at IS NULL",
        gallery=gallery_id,
        key=key,
    )


def labels_of_gallery(connection: Connection, gallery_id: int) -> list[tuple[int, str]]:
    """(row, label) of every labelled item."""
    result = execute(
        connection,
        "labels_of_gallery",
        """SELECT row, label FROM item
           WHERE gallery_id = :gallery AND label IS NOT NULL AND deleted_at IS NULL ORDER BY row""",
        gallery=gallery_id,
    )
    return [(int(row), str(label)) for row, label in result]


def insert_query_set(
    connection: Connection,
    *,
    gallery_id: int,
    name: str,
    relevance: str,
    source: str,
    modality: str | None = None,
) -> int | None:
    """Create a query set; None where the gallery has one of that name. `modality`: None: the gallery's."""
    return execute(
        connection,
        "insert_query_set",
        """INSERT INTO query_set (gallery_id, name, relevance, source, modality)
           SELECT id, :name, :relevance, :source, coalesce(:modality, modality) FROM gallery WHERE id = :gallery
           ON CONFLICT (gallery_id, name) DO NOTHING RETURNING id""",
        gallery=gallery_id,
        name=name,
        relevance=relevance,
        source=source,
        modality=modality,
    ).scalar_one_or_none()


def copy_queries(
    connection: Connection,
    query_set_id: int,
    queries: Iterable[tuple[int, str, str, str | None, Mapping[str, str]]],
    pairs: Iterable[tuple[int, int]],
) -> int:
    """COPY queries (no, key, uri, label, attributes) and relevant pairs (query no, item row); set the count."""
    count = copy_rows(
        connection,
        "copy_queries",
        "query (query_set_id, no, key, uri, label, attributes)",
        ((query_set_id, *query, json.dumps(dict(attributes))) for *query, attributes in queries),
    )
    copy_rows(
        connection,
        "copy_relevance",
        "relevance (query_set_id, query_no, item_row)",
        ((query_set_id, *pair) for pair in pairs),
    )
    execute(
        connection,
        "count_queries",
        "UPDATE query_set SET n_queries = :count WHERE id = :id",
        count=count,
        id=query_set_id,
    )
    return count


def query_set_by_name(connection: Connection, gallery_id: int, name: str) -> QuerySetRow | None:
    """A gallery's query set by its name."""
    return fetch_one(
        connection,
        QuerySetRow,
        "query_set_by_name",
        "SELECT * FROM query_set WHERE gallery_id = :gallery AND name = :name",
        gallery=gallery_id,
        name=name,
    )


def query_sets_of_gallery(connection: Connection, gallery_id: int) -> list[QuerySetRow]:
    """A gallery's query sets, oldest first."""
    return fetch_all(
        connection,
        QuerySetRow,
        "query_sets_of_gallery",
        "SELECT * FROM query_set WHERE gallery_id = :gallery ORDER BY id",
        gallery=gallery_id,
    )


def queries_of_set(connection: Connection, query_set_id: int) -> list[QueryRow]:
    """A set's queries in order."""
    return fetch_all(
        connection,
        QueryRow,
        "queries_of_set",
        "SELECT no, key, uri, label, attributes FROM query WHERE query_set_id = :id ORDER BY no",
        id=query_set_id,
    )


def relevant_pairs(connection: Connection, query_set_id: int) -> list[tuple[int, int]]:
    """(query no, item row) pairs in order: the explicit or clicked ones, or those of equal label, by the set's rule."""
    result = execute(
        connection,
        "relevant_pairs",
        """SELECT r.query_no, r.item_row FROM relevance r JOIN query_set s ON s.id = r.query_set_id
           WHERE s.id = :id AND s.relevance IN ('pairs', 'clicks')
           UNION ALL
           SELECT q.no, i.row FROM query q JOIN query_set s ON s.id = q.query_set_id
           JOIN item i ON i.gallery_id = s.gallery_id AND i.label = q.label AND i.deleted_at IS NULL
           WHERE s.id = :id AND s.relevance = 'label'
           ORDER BY 1, 2""",
        id=query_set_id,
    )
    return [(int(query_no), int(row)) for query_no, row in result]


def copy_rejected(
    connection: Connection,
    gallery_id: int,
    query_set_id: int | None,
    rejected: Iterable[tuple[str, str, str]],
) -> int:
    """COPY refused items or queries (key, uri, reason)."""
    return copy_rows(
        connection,
        "copy_rejected",
        "rejected (gallery_id, query_set_id, key, uri, reason)",
        ((gallery_id, query_set_id, *each) for each in rejected),
    )


def count_rejected(connection: Connection, gallery_id: int) -> dict[str, int]:
    """Refused items of a gallery by reason."""
    result = execute(
        connection,
        "count_rejected",
        """SELECT reason, count(*) FROM rejected WHERE gallery_id = :gallery AND query_set_id IS NULL GROUP BY reason""",
        gallery=gallery_id,
    )
    return {str(reason): int(count) for reason, count in result}


def rows_of_keys(connection: Connection, gallery_id: int, keys: Sequence[str]) -> dict[str, int]:
    """The rows of these keys; unknown keys are left out."""
    result = execute(
        connection,
        "rows_of_keys",
        """SELECT key, row FROM item
           WHERE gallery_id = :gallery AND key = ANY(CAST(:keys AS text[])) AND deleted_at IS NULL""",
        gallery=gallery_id,
        keys=list(keys),
    )
    return {str(key): int(row) for key, row in result}
