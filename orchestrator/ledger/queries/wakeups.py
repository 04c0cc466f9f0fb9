"""Statements of the outbox (wake-ups that a relay rings) and of duties (work that one process does at a time)."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all
from orchestrator.ledger.rows import OutboxRow


def request_wakeup(connection: Connection, task: str, rollout_id: int, lane: str) -> None:
    """Ask for a wake-up in the transaction of what it tells of; one that waits already is enough."""
    execute(
        connection,
        "request_wakeup",
        """INSERT INTO outbox (task, rollout_id, lane) VALUES (:task, :rollout, :lane)
           ON CONFLICT (task, rollout_id) WHERE sent_at IS NULL DO NOTHING""",
        task=task,
        rollout=rollout_id,
        lane=lane,
    )


def take_wakeups(connection: Connection, limit: int) -> list[OutboxRow]:
    """Wake-ups to be rung, oldest first, locked until the transaction ends; those another relay holds are left out."""
    return fetch_all(
        connection,
        OutboxRow,
        "take_wakeups",
        """SELECT id, task, rollout_id, lane FROM outbox WHERE sent_at IS NULL
           ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED""",
        limit=limit,
    )


def mark_sent(connection: Connection, ids: list[int]) -> None:
    """They were rung."""
    execute(
        connection,
        "mark_sent",
        "UPDATE outbox SET sent_at = clock_timestamp() WHERE id = ANY(CAST(:ids AS bigint[]))",
        ids=ids,
    )


def forget_sent(connection: Connection, older_than_s: float) -> int:
    """Remove wake-ups that were rung long ago; returns how many."""
    return execute(
        connection,
        "forget_sent",
        "DELETE FROM outbox WHERE sent_at < clock_timestamp() - make_interval(secs => :age)",
        age=older_than_s,
    ).rowcount


def take_duty(connection: Connection, name: str, owner: str, lease_s: float) -> bool:
    """Take a duty, or keep it; False: somebody else has it and their lease runs."""
    return (
        execute(
            connection,
            "take_duty",
            """INSERT INTO duty (name, owner, until)
               VALUES (:name, :owner, clock_timestamp() + make_interval(secs => :lease_s))
               ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
               WHERE duty.owner = excluded.owner OR duty.until < clock_timestamp()""",
            name=name,
            owner=owner,
            lease_s=lease_s,
        ).rowcount
        == 1
    )


def drop_duty(connection: Connection, name: str, owner: str) -> None:
    """Give a duty up, so that another takes it at once."""
    execute(
        connection,
        "drop_duty",
        "DELETE FROM duty WHERE name = :name AND owner = :owner",
        name=name,
        owner=owner,
    )
