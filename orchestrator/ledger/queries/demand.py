"""Statements about how often items were retrieved: chunks of counts, never a row an item."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_one
from orchestrator.ledger.rows import DemandRow


def lock_demand(connection: Connection, gallery_id: int) -> DemandRow:
    """A gallery's demand, made where there is none, locked until the transaction ends: whoever adds takes turns."""
    execute(
        connection,
        "make_demand",
        "INSERT INTO demand (gallery_id) VALUES (:gallery) ON CONFLICT DO NOTHING",
        gallery=gallery_id,
    )
    row = fetch_one(
        connection,
        DemandRow,
        "lock_demand",
        "SELECT * FROM demand WHERE gallery_id = :gallery FOR UPDATE",
        gallery=gallery_id,
    )
    assert row is not None
    return row


def demand_of_gallery(connection: Connection, gallery_id: int) -> DemandRow | None:
    """A gallery's demand; None where nothing was ever counted."""
    return fetch_one(
        connection,
        DemandRow,
        "demand_of_gallery",
        "SELECT * FROM demand WHERE gallery_id = :gallery",
        gallery=gallery_id,
    )


def read_chunks(
    connection: Connection, gallery_id: int, numbers: list[int] | None = None
) -> dict[int, bytes]:
    """Chunk number → little-endian u32 counts of 65,536 rows, without the zeros behind the last; of all, or of some."""
    result = execute(
        connection,
        "read_demand",
        """SELECT no, counts FROM demand_chunk
           WHERE gallery_id = :gallery AND (CAST(:numbers AS integer[]) IS NULL OR no = ANY(CAST(:numbers AS integer[])))
           ORDER BY no""",
        gallery=gallery_id,
        numbers=numbers,
    )
    return {int(no): bytes(counts) for no, counts in result}


def write_chunk(connection: Connection, gallery_id: int, no: int, counts: bytes) -> None:
    """One chunk's counts. The demand must be locked."""
    execute(
        connection,
        "write_demand",
        """INSERT INTO demand_chunk (gallery_id, no, counts) VALUES (:gallery, :no, :counts)
           ON CONFLICT (gallery_id, no) DO UPDATE SET counts = excluded.counts""",
        gallery=gallery_id,
        no=no,
        counts=counts,
    )


def set_total(connection: Connection, gallery_id: int, retrievals: int) -> None:
    """How many retrievals the chunks hold now."""
    execute(
        connection,
        "set_demand_total",
        """UPDATE demand SET retrievals = :retrievals, updated_at = clock_timestamp() WHERE gallery_id = :gallery""",
        gallery=gallery_id,
        retrievals=retrievals,
    )


def forget(connection: Connection, gallery_id: int) -> None:
    """Remove all that was counted."""
    execute(connection, "forget_demand", "DELETE FROM demand WHERE gallery_id = :gallery", gallery=gallery_id)
