"""Statements about revisions of a plan. The rollout must be locked wherever one is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all, fetch_one
from orchestrator.ledger.rows import PlanRevisionRow, WaitingBatch


def plan_file(connection: Connection, rollout_id: int, revision: int) -> str:
    """The name of the file with the inverse plan of a revision (1, 2 …). It never changes."""
    return str(
        execute(
            connection,
            "plan_file",
            "SELECT file FROM plan_revision WHERE rollout_id = :id AND no = :no",
            id=rollout_id,
            no=revision,
        ).scalar_one()
    )


def newest_revision(connection: Connection, rollout_id: int) -> PlanRevisionRow | None:
    """A plan's newest revision; None while it is the first plan."""
    return fetch_one(
        connection,
        PlanRevisionRow,
        "newest_revision",
        "SELECT * FROM plan_revision WHERE rollout_id = :id ORDER BY no DESC LIMIT 1",
        id=rollout_id,
    )


def count_revisions(connection: Connection, rollout_id: int, *, automatic: bool) -> int:
    """How many revisions a rollout wrote by itself, or by an operator's word."""
    return int(
        execute(
            connection,
            "count_revisions",
            "SELECT count(*) FROM plan_revision WHERE rollout_id = :id AND automatic = :automatic",
            id=rollout_id,
            automatic=automatic,
        ).scalar_one()
    )


def hold_waiting(connection: Connection, rollout_id: int, plan_items: int) -> list[WaitingBatch]:
    """The plan's batches that wait and were never tried, in the order of claims, locked until the transaction ends.

    One that is being claimed at this moment is left out, not waited for. Batches that failed keep their rows: an error that
    is told of one, and how often it was tried, belong to those.
    """
    return fetch_all(
        connection,
        WaitingBatch,
        "hold_waiting",
        """SELECT first_rank, n, plan_revision FROM batch
           WHERE rollout_id = :id AND state = 'pending' AND attempt = 0 AND error IS NULL AND first_rank < :plan_items
           ORDER BY band, first_rank FOR UPDATE SKIP LOCKED""",
        id=rollout_id,
        plan_items=plan_items,
    )


def superseded_ranks(connection: Connection, rollout_id: int) -> list[int]:
    """Ranks whose content is gone; their batches commit without them."""
    result = execute(
        connection,
        "superseded_ranks",
        "SELECT rank FROM superseded WHERE rollout_id = :id ORDER BY rank",
        id=rollout_id,
    )
    return [int(rank) for (rank,) in result]


def insert_revision(connection: Connection, revision: PlanRevisionRow) -> None:
    """Tell of a revision that is being written."""
    execute(
        connection,
        "insert_revision",
        """INSERT INTO plan_revision (rollout_id, no, file, measure, batches, items, committed_items, automatic, actor)
           VALUES (:rollout, :no, :file, :measure, :batches, :items, :committed, :automatic, :actor)""",
        rollout=revision.rollout_id,
        no=revision.no,
        file=revision.file,
        measure=revision.measure,
        batches=revision.batches,
        items=revision.items,
        committed=revision.committed_items,
        automatic=revision.automatic,
        actor=revision.actor,
    )


def rewrite_chunks(connection: Connection, rollout_id: int, chunks: Mapping[int, bytes]) -> None:
    """Give chunks of a plan (number → ranks, little-endian u32) other ranks."""
    for no, ranks in chunks.items():
        execute(
            connection,
            "rewrite_chunk",
            "UPDATE plan_chunk SET ranks = :ranks WHERE rollout_id = :id AND no = :no",
            id=rollout_id,
            no=no,
            ranks=ranks,
        )


def rerank_batches(
    connection: Connection, rollout_id: int, revision: int, batches: Sequence[tuple[int, float | None]]
) -> None:
    """Batches (first rank, mean uncertainty) have the rows of this revision from now on."""
    execute(
        connection,
        "rerank_batches",
        """UPDATE batch SET plan_revision = :revision, uncertainty = new.uncertainty
           FROM unnest(CAST(:ranks AS bigint[]), CAST(:means AS real[])) AS new (first_rank, uncertainty)
           WHERE batch.rollout_id = :id AND batch.first_rank = new.first_rank""",
        id=rollout_id,
        revision=revision,
        ranks=[first for first, _ in batches],
        means=[mean for _, mean in batches],
    )
