"""Statements about the background sets of galleries."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_one
from orchestrator.ledger.rows import BackgroundSetRow

_COLUMNS = "id, gallery_id, source, uris, neighbour, beta, created_at, removed_at"


def background_set_of(connection: Connection, gallery_id: int) -> BackgroundSetRow | None:
    """The set that a gallery has now."""
    return fetch_one(
        connection,
        BackgroundSetRow,
        "background_set_of",
        f"SELECT {_COLUMNS} FROM background_set WHERE gallery_id = :gallery AND removed_at IS NULL",  # noqa: S608
        gallery=gallery_id,
    )


def background_set_of_rollout(
    connection: Connection, rollout_id: int, gallery_id: int
) -> BackgroundSetRow | None:
    """The set that a rollout's thresholds are adjusted by: the one they were first, else the one the gallery has now."""
    first = fetch_one(
        connection,
        BackgroundSetRow,
        "background_set_of_rollout",
        f"""SELECT {_COLUMNS} FROM background_set
            WHERE id = (SELECT min(background_id) FROM match_threshold WHERE rollout_id = :rollout)""",  # noqa: S608
        rollout=rollout_id,
    )
    return first or background_set_of(connection, gallery_id)


def remove_background_set(connection: Connection, gallery_id: int) -> bool:
    """From now on the gallery has none; False where it had none. What was measured with it stays."""
    return (
        execute(
            connection,
            "remove_background_set",
            "UPDATE background_set SET removed_at = clock_timestamp() WHERE gallery_id = :gallery AND removed_at IS NULL",
            gallery=gallery_id,
        ).rowcount
        > 0
    )


def insert_background_set(
    connection: Connection, *, gallery_id: int, source: str, uris: Sequence[str], neighbour: int, beta: float
) -> None:
    """Give a gallery without a set this one."""
    execute(
        connection,
        "insert_background_set",
        """INSERT INTO background_set (gallery_id, source, uris, neighbour, beta)
           VALUES (:gallery, :source, :uris, :neighbour, :beta)""",
        gallery=gallery_id,
        source=source,
        uris=list(uris),
        neighbour=neighbour,
        beta=beta,
    )


def count_items_of(connection: Connection, gallery_id: int, uris: Sequence[str]) -> int:
    """How many items of the gallery, and queries of its sets, are read from one of these URIs."""
    return int(
        execute(
            connection,
            "count_items_of",
            """SELECT (SELECT count(*) FROM item WHERE gallery_id = :gallery AND deleted_at IS NULL AND uri = ANY(:uris))
                    + (SELECT count(*) FROM query q JOIN query_set s ON s.id = q.query_set_id
                       WHERE s.gallery_id = :gallery AND q.uri = ANY(:uris))""",
            gallery=gallery_id,
            uris=list(uris),
        ).scalar_one()
    )
