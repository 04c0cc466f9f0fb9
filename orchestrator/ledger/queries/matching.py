"""Statements of copy detection along a refresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from orchestrator.core.thresholds import Thresholds
from orchestrator.ledger.queries.run import execute, execute_many, fetch_all


def insert_thresholds(
    connection: Connection, rollout_id: int, query_set_id: int, seq: int, items: int, found: Thresholds,
    background: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Store what was measured after one log entry; what another evaluator already stored stays.

    Args:
        background: the background set that scores are adjusted by, and how many of its items were read; None: served scores.
    """
    background_id, background_n = background or (None, None)
    execute(
        connection,
        "insert_thresholds",
        """INSERT INTO match_threshold (rollout_id, query_set_id, seq, items, n, true_pairs, micro_ap, recall_at_p90, threshold,
                                       old_micro_ap, old_recall_at_p90, old_threshold, accepted, accepted_right, lost, gained,
                                       scores, background_id, background_n)
           VALUES (:rollout, :query_set, :seq, :items, :n, :true_pairs, :micro_ap, :recall, :threshold,
                   :old_micro_ap, :old_recall, :old_threshold, :accepted, :accepted_right, :lost, :gained,
                   :scores, :background_id, :background_n)
           ON CONFLICT DO NOTHING""",
        rollout=rollout_id,
        query_set=query_set_id,
        seq=seq,
        items=items,
        n=found.queries,
        true_pairs=found.true_pairs,
        micro_ap=found.now.micro_ap,
        recall=found.now.recall_at_precision,
        threshold=found.now.threshold,
        old_micro_ap=found.old.micro_ap,
        old_recall=found.old.recall_at_precision,
        old_threshold=found.old.threshold,
        accepted=found.accepted,
        accepted_right=found.right,
        lost=found.lost,
        gained=found.gained,
        scores="served" if background is None else "adjusted",
        background_id=background_id,
        background_n=background_n,
    )


@dataclass(frozen=True)
class FlippedPair:
    """A flipped query, and its first answers before and after: rows of the gallery, and where all three are read."""

    query_set_id: int
    query_no: int
    old_row: int
    new_row: int
    query_uri: str
    old_uri: str
    new_uri: str


@dataclass(frozen=True)
class VerifiedFlip:
    """What local matching says of a flip's two answers. Matches are None where a picture could not be read."""

    query_set_id: int
    query_no: int
    old_row: int
    new_row: int
    old_matches: int | None
    new_matches: int | None
    old_verified: bool
    new_verified: bool


_WAITING = """
    FROM flip f
    JOIN query q ON q.query_set_id = f.query_set_id AND q.no = f.query_no
    JOIN query_set s ON s.id = f.query_set_id
    JOIN item o ON o.gallery_id = s.gallery_id AND o.row = f.old_row AND o.deleted_at IS NULL
    JOIN item n ON n.gallery_id = s.gallery_id AND n.row = f.new_row AND n.deleted_at IS NULL
    WHERE f.rollout_id = :rollout AND f.reference = 'old_system' AND f.k = 1
      AND NOT EXISTS (SELECT FROM flip_verification v
                      WHERE v.rollout_id = f.rollout_id AND v.query_set_id = f.query_set_id AND v.query_no = f.query_no
                        AND v.old_row = f.old_row AND v.new_row = f.new_row)"""


def flips_to_verify(connection: Connection, rollout_id: int, limit: int) -> list[FlippedPair]:
    """Flips against the old system at k = 1 that were not compared yet, open ones first."""
    return fetch_all(
        connection,
        FlippedPair,
        "flips_to_verify",
        f"""SELECT f.query_set_id, f.query_no, f.old_row, f.new_row, q.uri AS query_uri, o.uri AS old_uri, n.uri AS new_uri
            {_WAITING}
            GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY bool_or(f.healed_seq IS NULL) DESC, 1, 2, 3, 4 LIMIT :limit""",
        rollout=rollout_id,
        limit=limit,
    )


def count_flips_to_verify(connection: Connection, rollout_id: int) -> int:
    """How many `flips_to_verify` would give."""
    return int(
        execute(
            connection,
            "count_flips_to_verify",
            f"SELECT count(DISTINCT (f.query_set_id, f.query_no, f.old_row, f.new_row)) {_WAITING}",
            rollout=rollout_id,
        ).scalar_one()
    )


def insert_verifications(connection: Connection, rollout_id: int, found: Sequence[VerifiedFlip]) -> None:
    """Store what was compared; what somebody else already stored stays."""
    execute_many(
        connection,
        "insert_verifications",
        """INSERT INTO flip_verification (rollout_id, query_set_id, query_no, old_row, new_row, old_matches, new_matches,
                                         old_verified, new_verified)
           VALUES (:rollout, :query_set_id, :query_no, :old_row, :new_row, :old_matches, :new_matches, :old_verified,
                   :new_verified)
           ON CONFLICT DO NOTHING""",
        [{"rollout": rollout_id, **vars(each)} for each in found],
    )


def verified_pairs(connection: Connection, rollout_id: int) -> list[tuple[str, str, int]]:
    """(URI of the query, URI of the item, matches) of every pair of a rollout that is verified."""
    result = execute(
        connection,
        "verified_pairs",
        """SELECT DISTINCT q.uri, i.uri, p.matches
           FROM flip_verification v
           CROSS JOIN LATERAL (VALUES (v.old_row, v.old_matches, v.old_verified), (v.new_row, v.new_matches, v.new_verified))
                              AS p (row, matches, verified)
           JOIN query q ON q.query_set_id = v.query_set_id AND q.no = v.query_no
           JOIN query_set s ON s.id = v.query_set_id
           JOIN item i ON i.gallery_id = s.gallery_id AND i.row = p.row AND i.deleted_at IS NULL
           WHERE v.rollout_id = :rollout AND p.verified ORDER BY 1, 2""",
        rollout=rollout_id,
    )
    return [(str(query), str(item), int(matches)) for query, item, matches in result]
