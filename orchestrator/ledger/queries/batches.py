"""Statements of the queue: claim, renew, commit, give back, split. The clock is the database's."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_one
from orchestrator.ledger.rows import Claim, Committed

# The rollout's row is locked first, then the batch, then the log row: every verb locks in the same order.
# NO KEY: rows that reference the rollout (flips, quarantine) are written without waiting for it.
# All guards are in the first two steps, so a refused commit changes nothing and needs no rollback.
# `late_revision` is compared under the lock: had a rank been superseded after this statement began, its snapshot could not
# see it, so the commit is refused and asked again with the newer revision.
COMMIT = """
WITH allowed AS (
    SELECT id, gallery_id FROM rollout WHERE id = :rollout AND generation = :generation AND late_revision = :late_revision
       AND state IN ('backfilling', 'finalized') FOR NO KEY UPDATE
), mine AS (
    SELECT b.rollout_id, b.first_rank, b.n, b.band, a.gallery_id FROM batch b
    JOIN allowed a ON a.id = b.rollout_id AND b.plan_revision = :plan_revision
    WHERE b.first_rank = :first_rank AND b.fence = :fence AND b.state = 'leased' FOR NO KEY UPDATE OF b
), gone AS (
    SELECT array_agg((s.rank - mine.first_rank)::integer ORDER BY s.rank) AS places FROM mine JOIN superseded s
    ON s.rollout_id = mine.rollout_id AND s.rank >= mine.first_rank AND s.rank < mine.first_rank + mine.n
), outcome AS (
    SELECT gone.places, CASE WHEN gone.places IS NULL THEN CAST(:holes AS integer[])
        ELSE (SELECT array_agg(h) FROM unnest(CAST(:holes AS integer[])) AS h WHERE h <> ALL (gone.places)) END AS holes
    FROM gone
), log AS (
    UPDATE gallery_log SET last_seq = last_seq + 1 FROM mine WHERE gallery_log.gallery_id = mine.gallery_id
    RETURNING last_seq
), counted AS (
    UPDATE rollout SET committed_batches = committed_batches + 1, last_progress_at = clock_timestamp(),
           failures_in_row = CASE WHEN CAST(:crc AS bigint) IS NULL THEN failures_in_row ELSE 0 END,
           committed_items = committed_items + mine.n - coalesce(cardinality(outcome.holes), 0),
           quarantined_items = quarantined_items + coalesce(cardinality(outcome.holes), 0)
    FROM mine, outcome WHERE id = mine.rollout_id
), banded AS (
    UPDATE band_progress p SET committed = p.committed + 1 FROM mine WHERE p.rollout_id = mine.rollout_id AND p.band = mine.band
), rolled AS (
    INSERT INTO progress (rollout_id, at, items, batches)
    SELECT rollout_id, date_bin('10 seconds', clock_timestamp(), 'epoch'),
           mine.n - coalesce(cardinality(outcome.holes), 0), 1 FROM mine, outcome
    ON CONFLICT (rollout_id, at) DO UPDATE SET items = progress.items + excluded.items, batches = progress.batches + 1
)
UPDATE batch SET state = 'committed', seq = log.last_seq, crc = :crc, holes = outcome.holes, superseded = outcome.places,
       error = NULL, lease_owner = NULL, lease_until = NULL, committed_at = clock_timestamp(),
       decode_s = :decode_s, encode_s = :encode_s, store_s = :store_s, previous_commit_s = :previous_commit_s
FROM mine, log, outcome WHERE batch.rollout_id = mine.rollout_id AND batch.first_rank = mine.first_rank
RETURNING batch.seq, batch.superseded
"""


def claim_batch(connection: Connection, rollout_id: int, owner: str, lease_s: float) -> Claim | None:
    """Lease the most urgent batch that is pending and due, or whose lease has run out; None: nothing to do now.

    A rollout that is throttled, or has as many batches in flight as its window allows, gives none.
    """
    return fetch_one(
        connection,
        Claim,
        "claim_batch",
        # The rollout is compared with a value, not joined, so that the index gives the batches in order.
        """WITH allowed AS (
               SELECT generation, late_revision FROM rollout
               WHERE id = :rollout AND state IN ('backfilling', 'finalized') AND throttle_reason IS NULL
                 AND (config ->> 'window' IS NULL OR (config ->> 'window')::integer >
                      (SELECT count(*) FROM batch WHERE rollout_id = :rollout AND state = 'leased'
                       AND lease_until >= clock_timestamp()))
           ), best AS (
               SELECT first_rank, state = 'leased' AS expired FROM batch
               WHERE rollout_id = :rollout AND state <> 'committed' AND EXISTS (SELECT 1 FROM allowed)
                 AND (state = 'pending' AND (available_at IS NULL OR available_at <= clock_timestamp())
                      OR state = 'leased' AND lease_until < clock_timestamp())
               ORDER BY band, first_rank LIMIT 1 FOR UPDATE SKIP LOCKED
           ), counted AS (
               INSERT INTO lease_expiry AS e (rollout_id, leases) SELECT :rollout, 1 FROM best WHERE expired
               ON CONFLICT (rollout_id) DO UPDATE SET leases = e.leases + 1
           )
           UPDATE batch SET state = 'leased', fence = fence + 1, attempt = attempt + 1, lease_owner = :owner,
                  lease_until = clock_timestamp() + make_interval(secs => :lease_s), claimed_at = clock_timestamp(),
                  claimed_revision = batch.plan_revision
           FROM best, allowed WHERE batch.rollout_id = :rollout AND batch.first_rank = best.first_rank
           RETURNING batch.rollout_id, batch.first_rank, batch.n, batch.fence, allowed.generation, allowed.late_revision,
                     batch.attempt, batch.band, batch.error, batch.plan_revision""",
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
               WHERE rollout_id = :rollout AND first_rank = :first_rank AND fence = :fence AND state = 'leased'""",
            rollout=claim.rollout_id,
            first_rank=claim.first_rank,
            fence=claim.fence,
            lease_s=lease_s,
        ).rowcount
        == 1
    )


def commit_batch(
    connection: Connection,
    claim: Claim,
    *,
    crc: int | None,
    holes: Sequence[int],
    decode_s: float = 0.0,
    encode_s: float = 0.0,
    store_s: float = 0.0,
    previous_commit_s: float | None = None,
) -> Committed | None:
    """Flip one batch to committed under its fence, generation and revisions.

    Args:
        crc: of the bytes under the claim's fence; None where every place is a hole and there are no bytes.
        holes: places whose items are quarantined.
        previous_commit_s: what the same worker's commit before this one took, where nobody was told yet.

    Returns None when the commit is refused: stale fence, paused, or ranks were superseded since the claim was made.
    """
    row = execute(
        connection,
        "commit_batch",
        COMMIT,
        rollout=claim.rollout_id,
        generation=claim.generation,
        late_revision=claim.late_revision,
        plan_revision=claim.plan_revision,
        first_rank=claim.first_rank,
        fence=claim.fence,
        crc=crc,
        holes=list(holes) or None,
        decode_s=decode_s,
        encode_s=encode_s,
        store_s=store_s,
        previous_commit_s=previous_commit_s,
    ).one_or_none()
    return None if row is None else Committed(int(row[0]), tuple(row[1] or ()))


def reread_commit(connection: Connection, claim: Claim) -> Committed | None:
    """What became of a claim whose COMMIT's answer was lost; None when it did not land."""
    row = execute(
        connection,
        "reread_commit",
        """SELECT seq, superseded FROM batch
           WHERE rollout_id = :rollout AND first_rank = :first_rank AND fence = :fence AND state = 'committed'""",
        rollout=claim.rollout_id,
        first_rank=claim.first_rank,
        fence=claim.fence,
    ).one_or_none()
    return None if row is None else Committed(int(row[0]), tuple(row[1] or ()))


def give_back(
    connection: Connection,
    claim: Claim,
    *,
    error: str | None = None,
    retry_in_s: float = 0.0,
    attempts: int | None = None,
) -> bool:
    """Return a batch that is not done; it is due again after `retry_in_s`. False: it is no longer ours.

    Args:
        attempts: how many count from now on; None: this one does not, nothing was wrong with the batch.
    """
    return (
        execute(
            connection,
            "give_back",
            """UPDATE batch SET state = 'pending', lease_owner = NULL, lease_until = NULL, error = coalesce(:error, error),
                      attempt = :attempts,
                      available_at = clock_timestamp() + make_interval(secs => :retry_in_s)
               WHERE rollout_id = :rollout AND first_rank = :first_rank AND fence = :fence AND state = 'leased'""",
            rollout=claim.rollout_id,
            first_rank=claim.first_rank,
            fence=claim.fence,
            error=error,
            attempts=claim.attempt - 1 if attempts is None else attempts,
            retry_in_s=retry_in_s,
        ).rowcount
        == 1
    )


def split_batch(connection: Connection, claim: Claim) -> bool:
    """Cut a leased batch of two and more items in two halves that are tried anew. The rollout must be locked.

    Both halves keep the fence, so that neither uses an address that was written to before. False: no longer ours.
    """
    lower = claim.n // 2
    done = execute(
        connection,
        "split_batch",
        """WITH kept AS (
               UPDATE batch SET n = :lower, state = 'pending', attempt = 0, lease_owner = NULL, lease_until = NULL,
                      available_at = NULL
               WHERE rollout_id = :rollout AND first_rank = :first_rank AND fence = :fence AND state = 'leased'
               RETURNING band, uncertainty, error, plan_revision
           ), added AS (
               INSERT INTO batch (rollout_id, first_rank, n, band, fence, uncertainty, error, plan_revision)
               SELECT :rollout, :second, :upper, band, :fence, uncertainty, error, plan_revision FROM kept RETURNING band
           ), banded AS (
               UPDATE band_progress p SET batches = batches + 1 FROM added
               WHERE p.rollout_id = :rollout AND p.band = added.band
           )
           UPDATE rollout SET n_batches = n_batches + 1 FROM added WHERE id = :rollout""",
        rollout=claim.rollout_id,
        first_rank=claim.first_rank,
        second=claim.first_rank + lower,
        lower=lower,
        upper=claim.n - lower,
        fence=claim.fence,
    )
    return done.rowcount == 1


def cut_anew(connection: Connection, rollout_id: int, batch_size: int, plan_items: int) -> int:
    """Cut the batches that wait into batches of another size; returns how many wait now. The rollout must be locked.

    Only neighbours of one band that were never tried are joined; leased, failed and committed ones stay as they are. The
    new ones take over the highest fence of the old: no address that was written to before is used again. They take over the
    newest revision of the plan, too: what it left alone has the same rows in it.
    """
    return int(
        execute(
            connection,
            "cut_anew",
            """WITH waiting AS (
                   DELETE FROM batch WHERE rollout_id = :rollout AND state = 'pending' AND attempt = 0
                   RETURNING first_rank, n, band, fence, uncertainty, plan_revision
               ), marked AS (
                   SELECT *, first_rank <> lag(first_rank + n) OVER w OR band <> lag(band) OVER w
                          OR first_rank = :plan_items AS begins
                   FROM waiting WINDOW w AS (ORDER BY first_rank)
               ), numbered AS (
                   SELECT *, count(*) FILTER (WHERE begins OR begins IS NULL) OVER (ORDER BY first_rank) AS run FROM marked
               ), runs AS (
                   SELECT band, min(first_rank) AS first_rank, sum(n) AS n, max(fence) AS fence,
                          max(plan_revision) AS plan_revision,
                          sum(uncertainty * n) / nullif(sum(n) FILTER (WHERE uncertainty IS NOT NULL), 0) AS uncertainty
                   FROM numbered GROUP BY run, band
               ), added AS (
                   INSERT INTO batch (rollout_id, first_rank, n, band, fence, uncertainty, plan_revision)
                   SELECT :rollout, at, least(:size, r.first_rank + r.n - at), r.band, r.fence, r.uncertainty, r.plan_revision
                   FROM runs r CROSS JOIN LATERAL generate_series(r.first_rank, r.first_rank + r.n - 1, :size) AS at
                   RETURNING band
               ), change AS (
                   SELECT band, sum(d) AS d FROM (SELECT band, 1 AS d FROM added UNION ALL SELECT band, -1 FROM waiting) AS each
                   GROUP BY band
               ), banded AS (
                   UPDATE band_progress p SET batches = p.batches + change.d FROM change
                   WHERE p.rollout_id = :rollout AND p.band = change.band
               ), counted AS (
                   UPDATE rollout SET batch_size = :size, n_batches = n_batches + coalesce((SELECT sum(d) FROM change), 0)
                   WHERE id = :rollout
               )
               SELECT count(*) FROM added""",
            rollout=rollout_id,
            size=batch_size,
            plan_items=plan_items,
        ).scalar_one()
    )


# Leases that ran out are counted where they are taken back: batches are locked first, then the counts, by everybody.
_RELEASE = """
WITH held AS (
    SELECT rollout_id, first_rank, lease_until < clock_timestamp() AS expired FROM batch
    WHERE state = 'leased' AND {condition} FOR UPDATE
), counted AS (
    INSERT INTO lease_expiry AS e (rollout_id, leases)
    SELECT rollout_id, count(*) FROM held WHERE expired GROUP BY rollout_id ORDER BY rollout_id
    ON CONFLICT (rollout_id) DO UPDATE SET leases = e.leases + excluded.leases
)
UPDATE batch SET state = 'pending', lease_owner = NULL, lease_until = NULL
FROM held WHERE batch.rollout_id = held.rollout_id AND batch.first_rank = held.first_rank
"""


def release_leases(connection: Connection, rollout_id: int, *, expired_only: bool = False) -> int:
    """Take leases back from their owners, whose commits are refused from now on; returns how many."""
    return execute(
        connection,
        "release_leases",
        _RELEASE.format(
            condition="rollout_id = :id AND (NOT :expired_only OR lease_until < clock_timestamp())"
        ),
        id=rollout_id,
        expired_only=expired_only,
    ).rowcount


def release_expired(connection: Connection) -> int:
    """Take back every lease that has run out, whatever its rollout; returns how many."""
    return execute(
        connection, "release_expired", _RELEASE.format(condition="lease_until < clock_timestamp()")
    ).rowcount


def count_leased(connection: Connection, rollout_id: int) -> int:
    """Batches that somebody holds."""
    return int(
        execute(
            connection,
            "count_leased",
            "SELECT count(*) FROM batch WHERE rollout_id = :id AND state = 'leased'",
            id=rollout_id,
        ).scalar_one()
    )


def make_due(connection: Connection, rollout_id: int) -> int:
    """Let every waiting batch be tried at once, with all its attempts; returns how many had been put off or tried."""
    return execute(
        connection,
        "make_due",
        """UPDATE batch SET available_at = NULL, attempt = 0
           WHERE rollout_id = :id AND state = 'pending' AND (attempt > 0 OR available_at > clock_timestamp())""",
        id=rollout_id,
    ).rowcount


def next_due_s(connection: Connection, rollout_id: int, *, pending_only: bool = False) -> float | None:
    """Seconds until an open batch (`pending_only`: one that nobody holds) can be claimed; None when there is none."""
    value = execute(
        connection,
        "next_due_s",
        """SELECT extract(epoch FROM min(CASE WHEN state = 'leased' THEN lease_until
                                              ELSE coalesce(available_at, clock_timestamp()) END) - clock_timestamp())
           FROM batch WHERE rollout_id = :rollout AND state <> 'committed' AND (NOT :pending_only OR state = 'pending')""",
        rollout=rollout_id,
        pending_only=pending_only,
    ).scalar_one()
    return None if value is None else max(0.0, float(value))


def import_committed(connection: Connection, rollout_id: int, checksums: Sequence[int]) -> None:
    """Mark every batch of a rollout committed at once: embeddings that came from a file, checksummed batch by batch."""
    execute(
        connection,
        "import_committed",
        """WITH sums AS (SELECT place - 1 AS place, crc FROM unnest(CAST(:crcs AS bigint[])) WITH ORDINALITY AS s (crc, place)),
                log AS (UPDATE gallery_log l SET last_seq = l.last_seq + cardinality(CAST(:crcs AS bigint[]))
                        FROM rollout r WHERE r.id = :rollout AND l.gallery_id = r.gallery_id
                        RETURNING l.last_seq - cardinality(CAST(:crcs AS bigint[])) AS first),
                done AS (UPDATE batch SET state = 'committed', seq = log.first + sums.place + 1, crc = sums.crc,
                                fence = 1, attempt = 1, committed_at = clock_timestamp()
                         FROM sums, log, rollout r
                         WHERE r.id = :rollout AND rollout_id = :rollout AND first_rank = sums.place * r.batch_size),
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
        """SELECT first_rank, n, attempt, fence, seq, committed_at, decode_s, encode_s, store_s FROM batch
           WHERE rollout_id = :rollout AND state = 'committed' ORDER BY seq""",
        rollout=rollout_id,
    )
    return [dict(row) for row in result.mappings()]
