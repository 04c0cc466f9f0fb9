"""Statements about items that come, change or go while a gallery is served. The gallery's row is locked first.

A rank's content never changes. What is added or changed gets new ranks behind the plan ("late" items); ranks that are not
committed yet and whose content is gone are "superseded": their batch commits without them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import copy_rows, execute, fetch_one
from orchestrator.ledger.rows import GalleryRow, RolloutRow

# Before every band of the plan: new content is searchable first.
LATE_BAND = -1


def lock_gallery(connection: Connection, gallery_id: int) -> GalleryRow:
    """A gallery's row, locked until the transaction ends: items and starts take turns."""
    row = fetch_one(
        connection,
        GalleryRow,
        "lock_gallery",
        "SELECT * FROM gallery WHERE id = :id FOR NO KEY UPDATE",
        id=gallery_id,
    )
    assert row is not None
    return row


def rewrite_items(
    connection: Connection,
    gallery_id: int,
    items: Sequence[tuple[int, str, str | None, Mapping[str, str]]],
) -> None:
    """Give rows (row, uri, label, attributes) new content; what they had before the first change is kept beside it.

    What they are in other modalities stays; `modalities.add_uris` changes that.
    """
    execute(
        connection,
        "rewrite_items",
        """UPDATE item SET uri = new.uri, label = new.label, attributes = CAST(new.attributes AS jsonb),
                   first_content = coalesce(first_content,
                                            jsonb_strip_nulls(item.attributes || jsonb_build_object('label', item.label)))
           FROM unnest(CAST(:rows AS bigint[]), CAST(:uris AS text[]), CAST(:labels AS text[]), CAST(:attributes AS text[]))
             AS new (row, uri, label, attributes)
           WHERE item.gallery_id = :gallery AND item.row = new.row""",
        gallery=gallery_id,
        rows=[row for row, _, _, _ in items],
        uris=[uri for _, uri, _, _ in items],
        labels=[label for _, _, label, _ in items],
        attributes=[json.dumps(dict(attributes)) for _, _, _, attributes in items],
    )


def mark_deleted(connection: Connection, gallery_id: int, rows: Sequence[int]) -> None:
    """Take rows out of the gallery; their numbers are never used again."""
    execute(
        connection,
        "mark_deleted",
        """WITH gone AS (UPDATE item SET deleted_at = clock_timestamp()
                         WHERE gallery_id = :gallery AND row = ANY(CAST(:rows AS bigint[])) AND deleted_at IS NULL RETURNING row),
                relevant AS (DELETE FROM relevance r USING query_set s, gone
                             WHERE s.id = r.query_set_id AND s.gallery_id = :gallery AND r.item_row = gone.row)
           UPDATE gallery SET n_deleted = n_deleted + (SELECT count(*) FROM gone) WHERE id = :gallery""",
        gallery=gallery_id,
        rows=list(rows),
    )


def deleted_of_gallery(connection: Connection, gallery_id: int) -> list[int]:
    """All deleted rows of a gallery."""
    result = execute(
        connection,
        "deleted_of_gallery",
        "SELECT row FROM item WHERE gallery_id = :gallery AND deleted_at IS NOT NULL ORDER BY row",
        gallery=gallery_id,
    )
    return [int(row) for (row,) in result]


def supersede_rows(connection: Connection, rollout_id: int, rows: Sequence[int]) -> None:
    """The content that a rollout knows of these rows is no longer theirs. The rollout must be locked.

    The newest rank of each row is left out by its batch's commit; where it was committed as a hole, it stops counting as
    quarantined. Where it was committed with a vector, nothing is done: what comes later in the log replaces it.
    """
    execute(
        connection,
        "supersede_rows",
        """WITH wanted AS (
               SELECT row, coalesce((SELECT max(l.rank) FROM late_item l WHERE l.rollout_id = :rollout AND l.row = w.row),
                                    rank_of(:rollout, w.row)) AS rank
               FROM unnest(CAST(:rows AS bigint[])) AS w (row)
           ), found AS (
               SELECT w.row, w.rank, b.first_rank, b.state, (w.rank - b.first_rank)::integer AS place,
                      coalesce((w.rank - b.first_rank)::integer = ANY (b.holes), false) AS hole
               FROM wanted w CROSS JOIN LATERAL (SELECT * FROM batch WHERE rollout_id = :rollout AND first_rank <= w.rank
                                                 ORDER BY first_rank DESC LIMIT 1) AS b
               WHERE w.rank IS NOT NULL
           ), open AS (
               INSERT INTO superseded (rollout_id, rank) SELECT :rollout, rank FROM found WHERE state <> 'committed'
               ON CONFLICT DO NOTHING
           ), holes AS (
               SELECT first_rank, array_agg(place) AS places FROM found WHERE state = 'committed' AND hole GROUP BY first_rank
           ), healed AS (
               UPDATE batch b SET superseded = coalesce(b.superseded, '{}') || h.places,
                      holes = (SELECT array_agg(p) FROM unnest(b.holes) AS p WHERE p <> ALL (h.places))
               FROM holes h WHERE b.rollout_id = :rollout AND b.first_rank = h.first_rank RETURNING cardinality(h.places) AS n
           ), resolved AS (
               DELETE FROM quarantine q USING found WHERE q.rollout_id = :rollout AND q.row = found.row
           )
           UPDATE rollout SET late_revision = late_revision + 1,
                  committed_items = committed_items + coalesce((SELECT sum(n) FROM healed), 0),
                  quarantined_items = quarantined_items - coalesce((SELECT sum(n) FROM healed), 0)
           WHERE id = :rollout""",
        rollout=rollout_id,
        rows=list(rows),
    )


def add_late(connection: Connection, rollout: RolloutRow, rows: Sequence[int]) -> None:
    """Give rows new ranks behind the plan, and batches of their own where no plan is still to come. The rollout is locked."""
    first = int(
        execute(
            connection,
            "extend_ranks",
            "UPDATE rollout SET n_items = n_items + :count WHERE id = :id RETURNING n_items - :count",
            count=len(rows),
            id=rollout.id,
        ).scalar_one()
    )
    copy_rows(
        connection,
        "copy_late",
        "late_item (rollout_id, rank, row)",
        ((rollout.id, first + place, row) for place, row in enumerate(rows)),
    )
    execute(
        connection,
        "content_of_late",
        """UPDATE late_item l SET content = jsonb_strip_nulls(item.attributes || jsonb_build_object('label', item.label))
            FROM item
            WHERE l.rollout_id = :id AND l.rank >= :first AND item.gallery_id = :gallery AND item.row = l.row""",
        id=rollout.id,
        first=first,
        gallery=rollout.gallery_id,
    )
    if rollout.n_batches or not rollout.how.reembeds:
        cut_late(connection, rollout.id, first, len(rows), rollout.batch_size)


def cut_late(connection: Connection, rollout_id: int, first: int, count: int, batch_size: int) -> None:
    """Batches for the late ranks [first, first + count). The rollout must be locked."""
    if count == 0:
        return
    execute(
        connection,
        "cut_late",
        """WITH added AS (
               INSERT INTO batch (rollout_id, first_rank, n, band)
               SELECT :id, at, least(:size, :behind - at), :band
               FROM generate_series(CAST(:first AS bigint), :behind - 1, :size) AS at RETURNING n
           ), banded AS (
               INSERT INTO band_progress (rollout_id, band, batches) SELECT :id, :band, count(*) FROM added
               ON CONFLICT (rollout_id, band) DO UPDATE SET batches = band_progress.batches + excluded.batches
           )
           UPDATE rollout SET n_batches = n_batches + (SELECT count(*) FROM added) WHERE id = :id""",
        id=rollout_id,
        first=first,
        behind=first + count,
        size=batch_size,
        band=LATE_BAND,
    )


def late_rows(connection: Connection, rollout_id: int, first: int, count: int) -> list[int]:
    """The rows of the late ranks [first, first + count), in rank order."""
    result = execute(
        connection,
        "late_rows",
        """SELECT row FROM late_item WHERE rollout_id = :id AND rank >= :first AND rank < :behind ORDER BY rank""",
        id=rollout_id,
        first=first,
        behind=first + count,
    )
    return [int(row) for (row,) in result]


def late_rows_alive(connection: Connection, rollout_id: int) -> list[int]:
    """Rows that came late to a rollout and are still in the gallery."""
    result = execute(
        connection,
        "late_rows_alive",
        """SELECT DISTINCT l.row FROM late_item l JOIN rollout r ON r.id = l.rollout_id
           JOIN item i ON i.gallery_id = r.gallery_id AND i.row = l.row
           WHERE l.rollout_id = :id AND i.deleted_at IS NULL ORDER BY l.row""",
        id=rollout_id,
    )
    return [int(row) for (row,) in result]


def quarantined_rows(connection: Connection, rollout_id: int) -> list[int]:
    """Rows that a rollout has put into quarantine and that are still in the gallery."""
    result = execute(
        connection,
        "quarantined_rows",
        """SELECT q.row FROM quarantine q JOIN rollout r ON r.id = q.rollout_id
           JOIN item i ON i.gallery_id = r.gallery_id AND i.row = q.row
           WHERE q.rollout_id = :id AND i.deleted_at IS NULL ORDER BY q.row""",
        id=rollout_id,
    )
    return [int(row) for (row,) in result]


def insert_quarantined(
    connection: Connection,
    rollout_id: int,
    items: Sequence[tuple[int, str, str]],
    evidence: str,
) -> None:
    """Record items (row, reason, message) that could not be embedded; a repeat counts an attempt.

    Args:
        evidence: JSON: which batch, fence, attempt, worker and model it was.
    """
    execute(
        connection,
        "insert_quarantined",
        """INSERT INTO quarantine (rollout_id, row, reason, message, evidence)
           SELECT :rollout, bad.row, bad.reason, bad.message, CAST(:evidence AS jsonb)
           FROM unnest(CAST(:rows AS bigint[]), CAST(:reasons AS text[]), CAST(:messages AS text[])) AS bad (row, reason, message)
           ON CONFLICT (rollout_id, row) DO UPDATE SET attempts = quarantine.attempts + 1, last_seen = clock_timestamp(),
               reason = excluded.reason, message = excluded.message, evidence = excluded.evidence""",
        rollout=rollout_id,
        rows=[row for row, _, _ in items],
        reasons=[reason for _, reason, _ in items],
        messages=[message for _, _, message in items],
        evidence=evidence,
    )


def quarantined_recently(connection: Connection, rollout_id: int, from_seq: int, items: int) -> int:
    """How many of the last `items` items that were committed behind `from_seq` went into quarantine."""
    return int(
        execute(
            connection,
            "quarantined_recently",
            """WITH newest AS (
                   SELECT coalesce(cardinality(holes), 0) AS bad, sum(n) OVER (ORDER BY seq DESC) - n AS before
                   FROM (SELECT seq, n, holes FROM batch WHERE rollout_id = :id AND seq > :from_seq
                         ORDER BY seq DESC LIMIT :items) AS last
               )
               SELECT coalesce(sum(bad), 0) FROM newest WHERE before < :items""",
            id=rollout_id,
            from_seq=from_seq,
            items=items,
        ).scalar_one()
    )


def open_late_rows(connection: Connection, rollout_id: int) -> list[int]:
    """Rows whose newest rank of a rollout waits for its batch."""
    result = execute(
        connection,
        "open_late_rows",
        """SELECT DISTINCT l.row FROM late_item l JOIN batch b ON b.rollout_id = l.rollout_id
             AND l.rank >= b.first_rank AND l.rank < b.first_rank + b.n
           WHERE l.rollout_id = :id AND b.state <> 'committed'""",
        id=rollout_id,
    )
    return [int(row) for (row,) in result]
