"""Statements of the queue and of the log: claim, renew, commit, give back, tail. The clock is the database's."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, execute_many, fetch_one
from orchestrator.ledger.rows import Claim, LogEntry

# The rollout's row is locked first, then the batch, then the log row: pause and cancel lock in the same order.
# All guards are in the first two steps, so a refused commit changes nothing and needs no rollback.
COMMIT = """
WITH allowed AS (
    SELECT id, gallery_id FROM rollout WHERE id = :rollout AND generation = :generation AND state = 'backfilling' FOR UPDATE
), mine AS (
    SELECT b.rollout_id, b.no, b.band, a.gallery_id FROM batch b JOIN allowed a ON a.id = b.rollout_id
    WHERE b.no = :no AND b.fence = :fence AND b.state = 'leased' FOR UPDATE OF b
), log AS (
    UPDATE gallery_log SET last_seq = last_seq + 1 FROM mine WHERE gallery_log.gallery_id = mine.gallery_id
    RETURNING last_seq
), counted AS (
    UPDATE rollout SET committed_batches = committed_batches + 1, committed_items = committed_items + :items,
           quarantined_items = quarantined_items + :quarantined, last_progress_at = clock_timestamp()
    FROM mine WHERE id = mine.rollout_id
), banded AS (
    UPDATE band_progress p SET committed = p.committed + 1 FROM mine WHERE p.rollout_id = mine.rollout_id AND p.band = mine.band
), rolled AS (
    INSERT INTO progress (rollout_id, at, items, batches)
    SELECT rollout_id, date_bin('10 seconds', clock_timestamp(), 'epoch'), :items, 1 FROM mine
    ON CONFLICT (rollout_id, at) DO UPDATE SET items = progress.items + excluded.items, batches = progress.batches + 1
)
UPDATE batch SET state = 'committed', seq = log.last_seq, crc = :crc, holes = CAST(:holes AS integer[]), error = NULL,
       lease_owner = NULL, lease_until = NULL, committed_at = clock_timestamp(),
       decode_s = :decode_s, encode_s = :encode_s, store_s = :store_s
FROM mine, log WHERE batch.rollout_id = mine.rollout_id AND batch.no = mine.no
RETURNING batch.seq
"""


def claim_batch(connection: Connection, rollout_id: int, owner: str, lease_s: float) -> Claim | None:
    """Lease the first batch in rank order that is pending and due, or whose lease has run out; None: nothing to do."""
    return fetch_one(
        connection,
        Claim,
        "claim_batch",
        # The rollout is compared with a value, not joined, so that the index gives the batches in order.
        """WITH allowed AS (SELECT generation FROM rollout WHERE id = :rollout AND state = 'backfilling'),
                best AS (SELECT no FROM batch
                         WHERE rollout_id = :rollout AND state <> 'committed' AND EXISTS (SELECT 1 FROM allowed)
                           AND (state = 'pending' AND (available_at IS NULL OR available_at <= clock_timestamp())
                                OR state = 'leased' AND lease_until < clock_timestamp())
                         ORDER BY no LIMIT 1 FOR UPDATE SKIP LOCKED)
           UPDATE batch SET state = 'leased', fence = fence + 1, attempt = attempt + 1, lease_owner = :owner,
                  lease_until = clock_timestamp() + make_interval(secs => :lease_s)
           FROM best, allowed WHERE batch.rollout_id = :rollout AND batch.no = best.no
           RETURNING batch.rollout_id, batch.no, batch.n, batch.fence, allowed.generation, batch.attempt, batch.band""",
        rollout=rollout_id,
        owner=owner,
        lease_s=lease_s,
    )


def renew_lease(connection: Connection, claim: Claim, lease_s: float) -> bool:
    """Extend a lease that is still ours; False: drop the batch."""
    return (
        execute(
            connection,
            "renew_lease",
            """UPDATE batch SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
               WHERE rollout_id = :rollout AND no = :no AND fence = :fence AND state = 'leased'""",
            rollout=claim.rollout_id,
            no=claim.no,
            fence=claim.fence,
            lease_s=lease_s,
        ).rowcount
        == 1
    )


def commit_batch(
    connection: Connection,
    claim: Claim,
    *,
    crc: int,
    holes: Sequence[int],
    decode_s: float,
    encode_s: float,
    store_s: float,
) -> int | None:
    """Flip one batch to committed under its fence and generation.

    Returns its sequence number in the gallery's log, or None when the commit is refused (stale fence, paused …).
    """
    return execute(
        connection,
        "commit_batch",
        COMMIT,
        rollout=claim.rollout_id,
        generation=claim.generation,
        no=claim.no,
        fence=claim.fence,
        items=claim.n - len(holes),
        quarantined=len(holes),
        crc=crc,
        holes=list(holes) or None,
        decode_s=decode_s,
        encode_s=encode_s,
        store_s=store_s,
    ).scalar_one_or_none()


def committed_seq(connection: Connection, claim: Claim) -> int | None:
    """The sequence number of a claim whose COMMIT's answer was lost; None when it did not land."""
    return execute(
        connection,
        "committed_seq",
        """SELECT seq FROM batch WHERE rollout_id = :rollout AND no = :no AND fence = :fence AND state = 'committed'""",
        rollout=claim.rollout_id,
        no=claim.no,
        fence=claim.fence,
    ).scalar_one_or_none()


def give_back(connection: Connection, claim: Claim, *, error: str | None, retry_in_s: float) -> bool:
    """Return a batch that could not be done; it is due again after `retry_in_s`. False: it is no longer ours."""
    return (
        execute(
            connection,
            "give_back",
            """UPDATE batch SET state = 'pending', lease_owner = NULL, lease_until = NULL, error = :error,
                      available_at = clock_timestamp() + make_interval(secs => :retry_in_s)
               WHERE rollout_id = :rollout AND no = :no AND fence = :fence AND state = 'leased'""",
            rollout=claim.rollout_id,
            no=claim.no,
            fence=claim.fence,
            error=error,
            retry_in_s=retry_in_s,
        ).rowcount
        == 1
    )


def insert_quarantined(
    connection: Connection, rollout_id: int, items: Sequence[tuple[int, str, str]]
) -> None:
    """Record items (row, reason, message) that could not be embedded; a repeat counts an attempt."""
    execute_many(
        connection,
        "insert_quarantined",
        """INSERT INTO quarantine (rollout_id, row, reason, message) VALUES (:rollout, :row, :reason, :message)
           ON CONFLICT (rollout_id, row) DO UPDATE SET attempts = quarantine.attempts + 1, last_seen = clock_timestamp(),
               reason = excluded.reason, message = excluded.message""",
        [
            {"rollout": rollout_id, "row": row, "reason": reason, "message": message}
            for row, reason, message in items
        ],
    )


def next_due_s(connection: Connection, rollout_id: int) -> float | None:
    """Seconds until an open batch can be claimed (0: now); None when no batch is open."""
    value = execute(
        connection,
        "next_due_s",
        """SELECT extract(epoch FROM min(CASE WHEN state = 'leased' THEN lease_until
                                              ELSE coalesce(available_at, clock_timestamp()) END) - clock_timestamp())
           FROM batch WHERE rollout_id = :rollout AND state <> 'committed'""",
        rollout=rollout_id,
    ).scalar_one()
    return None if value is None else max(0.0, float(value))


def log_after(connection: Connection, gallery_id: int, seq: int, limit: int) -> list[LogEntry]:
    """The gallery's log behind `seq`, in order: committed batches and events."""
    result = execute(
        connection,
        "log_after",
        """(SELECT b.seq, 'batch' AS kind, b.rollout_id, b.no, b.n, b.crc, b.holes
            FROM rollout r JOIN batch b ON b.rollout_id = r.id
            WHERE r.gallery_id = :gallery AND b.seq > :seq ORDER BY b.seq LIMIT :limit)
           UNION ALL
           (SELECT seq, kind, rollout_id, NULL, NULL, NULL, NULL FROM log_event
            WHERE gallery_id = :gallery AND seq > :seq ORDER BY seq LIMIT :limit)
           ORDER BY seq LIMIT :limit""",
        gallery=gallery_id,
        seq=seq,
        limit=limit,
    )
    return [
        LogEntry(s, kind, rollout, no, n, crc, tuple(holes or ()))
        for s, kind, rollout, no, n, crc, holes in result
    ]


def last_seq(connection: Connection, gallery_id: int) -> int:
    """The newest sequence number of a gallery's log."""
    return int(
        execute(
            connection,
            "last_seq",
            "SELECT last_seq FROM gallery_log WHERE gallery_id = :gallery",
            gallery=gallery_id,
        ).scalar_one()
    )


def committed_batches(connection: Connection, rollout_id: int, up_to_seq: int) -> list[LogEntry]:
    """A rollout's committed batches up to a place in the log, in log order."""
    result = execute(
        connection,
        "committed_batches",
        """SELECT seq, no, n, crc, holes FROM batch
           WHERE rollout_id = :rollout AND seq IS NOT NULL AND seq <= :seq ORDER BY seq""",
        rollout=rollout_id,
        seq=up_to_seq,
    )
    return [
        LogEntry(seq, "batch", rollout_id, no, n, crc, tuple(holes or ()))
        for seq, no, n, crc, holes in result
    ]


def import_committed(connection: Connection, rollout_id: int, checksums: Sequence[int]) -> None:
    """Mark every batch of a rollout committed at once: embeddings that came from a file, checksummed batch by batch."""
    execute(
        connection,
        "import_committed",
        """WITH sums AS (SELECT no - 1 AS no, crc FROM unnest(CAST(:crcs AS bigint[])) WITH ORDINALITY AS s (crc, no)),
                log AS (UPDATE gallery_log l SET last_seq = l.last_seq + cardinality(CAST(:crcs AS bigint[]))
                        FROM rollout r WHERE r.id = :rollout AND l.gallery_id = r.gallery_id
                        RETURNING l.last_seq - cardinality(CAST(:crcs AS bigint[])) AS first),
                done AS (UPDATE batch SET state = 'committed', seq = log.first + sums.no + 1, crc = sums.crc,
                                fence = 1, attempt = 1, committed_at = clock_timestamp()
                         FROM sums, log WHERE rollout_id = :rollout AND batch.no = sums.no),
                banded AS (UPDATE band_progress SET committed = batches WHERE rollout_id = :rollout)
           UPDATE rollout SET committed_batches = n_batches, committed_items = n_items, last_progress_at = clock_timestamp()
           WHERE id = :rollout""",
        rollout=rollout_id,
        crcs=list(checksums),
    )


def attempts_histogram(connection: Connection, rollout_id: int) -> dict[int, int]:
    """How many batches took how many attempts."""
    result = execute(
        connection,
        "attempts_histogram",
        "SELECT attempt, count(*) FROM batch WHERE rollout_id = :rollout GROUP BY attempt ORDER BY attempt",
        rollout=rollout_id,
    )
    return {int(attempt): int(count) for attempt, count in result}


def batch_times(connection: Connection, rollout_id: int) -> list[dict[str, object]]:
    """Every committed batch with its time of commit, in log order: what a throughput plot needs."""
    result = execute(
        connection,
        "batch_times",
        """SELECT no, n, attempt, fence, seq, committed_at, decode_s, encode_s, store_s FROM batch
           WHERE rollout_id = :rollout AND state = 'committed' ORDER BY seq""",
        rollout=rollout_id,
    )
    return [dict(row) for row in result.mappings()]


def deployed_seq(connection: Connection, rollout_id: int) -> int:
    """The place of a rollout's deployment in its gallery's log."""
    return int(
        execute(
            connection,
            "deployed_seq",
            "SELECT seq FROM log_event WHERE rollout_id = :id AND kind = 'deployed' ORDER BY seq LIMIT 1",
            id=rollout_id,
        ).scalar_one()
    )
