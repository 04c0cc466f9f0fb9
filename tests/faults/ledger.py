"""Single batches and rollouts as the ledger has them: read, claimed, committed, expired by the database's clock.

With `oracle` the only files of the suite that know tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from orchestrator.context import Context
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import Claim, RolloutRow


def rows_of(connection: Connection, statement: str, **values: Any) -> list[Any]:
    """The rows of one statement."""
    return list(connection.execute(text(statement), values))


def rollout(connection: Connection, rollout_id: int) -> RolloutRow:
    """A rollout that is known to exist."""
    row = rollout_queries.rollout_by_id(connection, rollout_id)
    assert row is not None, f"there is no rollout {rollout_id}"
    return row


@dataclass(frozen=True)
class Lease:
    """A batch of one rollout as it stands: its key, who has it, under which fence."""

    key: int
    state: str
    owner: str | None
    fence: int
    attempt: int
    seq: int | None
    crc: int | None


def leases(context: Context, rollout_id: int, owner: str | None = None) -> list[Lease]:
    """The batches of a rollout in rank order; of one owner where asked."""
    with context.engine.connect() as connection:
        found = rows_of(
            connection,
            """SELECT first_rank, state, lease_owner, fence, attempt, seq, crc FROM batch
               WHERE rollout_id = :id AND (CAST(:owner AS text) IS NULL OR lease_owner = :owner) ORDER BY first_rank""",
            id=rollout_id,
            owner=owner,
        )
    return [Lease(*row) for row in found]


def leases_of_process(context: Context, rollout_id: int, pid: int) -> list[Lease]:
    """The batches that a worker process of this machine holds."""
    return [lease for lease in leases(context, rollout_id) if lease.owner and f"-{pid}-" in lease.owner]


def expire_leases(context: Context, rollout_id: int) -> int:
    """End every lease of a rollout by the database's clock, as waiting would; returns how many."""
    with context.engine.begin() as connection:
        return connection.execute(
            text(
                """UPDATE batch SET lease_until = clock_timestamp() - interval '1 second'
                   WHERE rollout_id = :id AND state = 'leased' AND lease_until > clock_timestamp()"""
            ),
            {"id": rollout_id},
        ).rowcount


def forgive_attempts(context: Context, rollout_id: int) -> None:
    """Take back what deaths of our making count against batches: they are not poison."""
    with context.engine.begin() as connection:
        connection.execute(
            text("UPDATE batch SET attempt = 0 WHERE rollout_id = :id AND state <> 'committed'"),
            {"id": rollout_id},
        )


def forget_waits(context: Context, rollout_id: int) -> None:
    """Make every batch that waits for its next try due now, as waiting would."""
    with context.engine.begin() as connection:
        connection.execute(
            text("UPDATE batch SET available_at = NULL WHERE rollout_id = :id"), {"id": rollout_id}
        )


def claim(context: Context, rollout_id: int, owner: str, lease_s: float) -> Claim | None:
    """Claim a batch as a worker does."""
    with context.engine.begin() as connection:
        return batch_queries.claim_batch(connection, rollout_id, owner, lease_s)


def commit(context: Context, claimed: Claim, crc: int = 0) -> int | None:
    """Commit a claim as a worker does, without having written anything; its place in the log."""
    with context.engine.begin() as connection:
        done = batch_queries.commit_batch(connection, claimed, crc=crc, holes=())
    return None if done is None else done.seq


def key_of(claimed: Claim) -> int:
    """The key of a claimed batch, as in `Lease.key`."""
    return claimed.first_rank


def claim_of(context: Context, rollout_id: int, lease: Lease) -> Claim:
    """The claim under which a batch was committed, for a commit that arrives twice."""
    with context.engine.connect() as connection:
        row = rollout(connection, rollout_id)
        n, band = rows_of(
            connection,
            "SELECT n, band FROM batch WHERE rollout_id = :id AND first_rank = :key",
            id=rollout_id,
            key=lease.key,
        )[0]
    return Claim(
        rollout_id, lease.key, n, lease.fence, row.generation, row.late_revision, lease.attempt, band, None
    )


def renew(context: Context, claimed: Claim, lease_s: float) -> bool:
    """Renew a lease as a worker does."""
    with context.engine.begin() as connection:
        return batch_queries.renew_lease(connection, claimed, lease_s)


def claims_at_once(context: Context, rollout_id: int) -> tuple[Claim | None, Claim | None]:
    """Two claims in two open transactions; the second may not wait for the first for longer than a second."""
    with context.engine.begin() as one, context.engine.begin() as two:
        two.execute(text("SET LOCAL lock_timeout = '1s'"))
        first = batch_queries.claim_batch(one, rollout_id, "one", 60.0)
        return first, batch_queries.claim_batch(two, rollout_id, "two", 60.0)


def insert_copy_of_rollout(context: Context, rollout_id: int) -> None:
    """A second active rollout on the same gallery, past every check that is not the database's own."""
    with context.engine.begin() as connection:
        connection.execute(
            text(
                """INSERT INTO rollout (gallery_id, kind, from_model_id, to_model_id, state, order_name, config,
                                        batch_size, n_items, plan_items, extent_uri, actor)
                   SELECT gallery_id, kind, from_model_id, to_model_id, 'planned', order_name, config,
                          batch_size, n_items, plan_items, extent_uri, actor FROM rollout WHERE id = :id"""
            ),
            {"id": rollout_id},
        )


def state(context: Context, rollout_id: int) -> str:
    """A rollout's state."""
    with context.engine.connect() as connection:
        return rollout(connection, rollout_id).state


def settle(context: Context, rollout_id: int) -> str:
    """Let every lease end and acknowledge what was asked for, as time would; returns the state."""
    from orchestrator.service import rollouts

    expire_leases(context, rollout_id)
    return rollouts.acknowledge(context, rollout_id).state


def newest_rollout(context: Context, gallery: str) -> int:
    """The id of a gallery's newest rollout."""
    with context.engine.connect() as connection:
        row = gallery_queries.gallery_by_name(connection, gallery)
        assert row is not None
        latest = rollout_queries.latest_rollout(connection, row.id)
    assert latest is not None
    return latest.id
