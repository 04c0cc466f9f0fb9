"""Statements about what items are filtered by: attributes and label, as one document an item, its "content".

The label stands there under the name `label`, which no attribute has.

Which content an item is served with follows from where its vector comes from: a late rank has the content of the moment when it
was given, a rank within a plan that of the moment when the plan was written, and an older vector the item's first content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute
from orchestrator.ledger.rows import RolloutRow

Contents = list[tuple[int, Mapping[str, str]]]
"""(row, attributes with the label) of items."""


def keep_planned_contents(connection: Connection, rollout: RolloutRow) -> None:
    """Keep what items that ever changed have now: the ranks of a plan that is just written are about that."""
    execute(
        connection,
        "keep_planned_contents",
        """INSERT INTO planned_content (rollout_id, row, content)
            SELECT :rollout, item.row, jsonb_strip_nulls(item.attributes || jsonb_build_object('label', item.label)) FROM item
            WHERE item.gallery_id = :gallery AND item.first_content IS NOT NULL AND item.deleted_at IS NULL
              AND item.row < :items""",
        rollout=rollout.id,
        gallery=rollout.gallery_id,
        items=rollout.plan_items,
    )


def first_contents(
    connection: Connection, gallery_id: int, first_row: int, limit: int
) -> list[tuple[int, str]]:
    """(row, document as JSON) of items from a row on, in order of row, as they were before any change."""
    result = execute(
        connection,
        "first_contents",
        """SELECT row, CAST(coalesce(first_content,
                                       jsonb_strip_nulls(item.attributes || jsonb_build_object('label', item.label))) AS text)
            FROM item
            WHERE gallery_id = :gallery AND row >= :first_row ORDER BY row LIMIT :limit""",
        gallery=gallery_id,
        first_row=first_row,
        limit=limit,
    )
    return [(int(row), str(content)) for row, content in result]


def contents_of_rows(
    connection: Connection, gallery_id: int, rows: Sequence[int]
) -> list[tuple[int, Mapping[str, str], Mapping[str, str]]]:
    """(row, content before any change, content now) of these rows; unknown ones are left out."""
    result = execute(
        connection,
        "contents_of_rows",
        """SELECT item.row, coalesce(item.first_content, now.content), now.content
           FROM unnest(CAST(:rows AS bigint[])) AS wanted (row)
           JOIN item ON item.gallery_id = :gallery AND item.row = wanted.row
           CROSS JOIN LATERAL (SELECT jsonb_strip_nulls(item.attributes || jsonb_build_object('label', item.label)))
             AS now (content)""",
        gallery=gallery_id,
        rows=[int(row) for row in rows],
    )
    return [(int(row), first, now) for row, first, now in result]


def committed_late_contents(
    connection: Connection, gallery_id: int, up_to_seq: int
) -> list[tuple[int, int, Mapping[str, str]]]:
    """(rollout, row, content) of late ranks that are committed up to a place in the log, in order of rank within a rollout."""
    result = execute(
        connection,
        "committed_late_contents",
        """SELECT l.rollout_id, l.row, l.content FROM rollout r JOIN late_item l ON l.rollout_id = r.id
           CROSS JOIN LATERAL (SELECT * FROM batch WHERE batch.rollout_id = l.rollout_id AND batch.first_rank <= l.rank
                               ORDER BY batch.first_rank DESC LIMIT 1) AS b
           WHERE r.gallery_id = :gallery AND b.seq <= :seq AND l.rank < b.first_rank + b.n
             AND NOT coalesce((l.rank - b.first_rank)::integer = ANY (b.superseded), false)
           ORDER BY l.rollout_id, l.rank""",
        gallery=gallery_id,
        seq=up_to_seq,
    )
    return [_three(row) for row in result]


def planned_contents(connection: Connection, gallery_id: int) -> list[tuple[int, int, Mapping[str, str]]]:
    """(rollout, row, content) of what plans were written about, where an item had changed before."""
    result = execute(
        connection,
        "planned_contents",
        """SELECT p.rollout_id, p.row, p.content FROM planned_content p JOIN rollout r ON r.id = p.rollout_id
           WHERE r.gallery_id = :gallery""",
        gallery=gallery_id,
    )
    return [_three(row) for row in result]


def _three(row: Any) -> tuple[int, int, Mapping[str, str]]:
    return int(row[0]), int(row[1]), row[2]


def contents_of_late(connection: Connection, rollout_id: int, first_rank: int, n: int) -> Contents:
    """What the late ranks [first_rank, first_rank + n) are about, in order of rank."""
    result = execute(
        connection,
        "contents_of_late",
        """SELECT row, content FROM late_item
           WHERE rollout_id = :rollout AND rank >= :first_rank AND rank < :first_rank + :n ORDER BY rank""",
        rollout=rollout_id,
        first_rank=first_rank,
        n=n,
    )
    return [(int(row), content) for row, content in result]


def contents_of_planned(
    connection: Connection, rollout: RolloutRow, rows: Sequence[int], known: int
) -> Contents:
    """Of these rows, ranks within a plan: those that had changed when it was written, and those from `known` on."""
    result = execute(
        connection,
        "contents_of_planned",
        """SELECT wanted.row, p.content FROM unnest(CAST(:rows AS bigint[])) AS wanted (row)
            JOIN planned_content p ON p.rollout_id = :rollout AND p.row = wanted.row
            UNION ALL
            SELECT item.row, coalesce(item.first_content,
                                      jsonb_strip_nulls(item.attributes || jsonb_build_object('label', item.label)))
            FROM unnest(CAST(:new AS bigint[])) AS wanted (row)
            JOIN item ON item.gallery_id = :gallery AND item.row = wanted.row
            WHERE NOT EXISTS (SELECT 1 FROM planned_content p WHERE p.rollout_id = :rollout AND p.row = wanted.row)""",
        rollout=rollout.id,
        gallery=rollout.gallery_id,
        rows=[int(row) for row in rows],
        new=[int(row) for row in rows if row >= known],
    )
    return [(int(row), content) for row, content in result]
