"""Wake-ups doubled, out of order, late, dropped and nonsense, through the real broker: the ledger decides, not they."""

from __future__ import annotations

import contextlib
import random
from functools import partial
from pathlib import Path

import pytest
import redis

from orchestrator.context import Context
from orchestrator.service import rollouts
from tests.faults import ledger, oracle, report, world
from tests.faults.crew import crew, until
from tests.faults.test_worker_kills import judged
from tests.faults.volume import FACTOR, SEED, scaled

QUEUE = "hotrefresh."  # what all of ours begin with
TASKS = ("deploy", "plan", "drain", "evaluate", "finalize", "sweep")


def ring(context: Context, chosen: random.Random, known: list[int], rings: int) -> None:
    """True and untrue wake-ups in any order: for this rollout, for those that are over, for none."""
    for _ in range(rings):
        lane = chosen.choice(("control", "urgent", "backfill", "repair"))
        context.broker.ring(chosen.choice(TASKS), lane, chosen.choice([*known, known[-1], 0, 10**12]), 1)


def talk_nonsense(context: Context, chosen: random.Random, messages: int) -> None:
    """Tasks that do not exist, and arguments that no task takes."""
    nonsense: list[tuple[str, list[object]]] = [
        ("hotrefresh.no_such_task", [1]),
        ("hotrefresh.drain", []),
        ("hotrefresh.drain", ["../../etc", None]),
        ("hotrefresh.drain", [{"rollout": [1, 2]}]),
        ("hotrefresh.plan", ["nan", 1]),
        ("hotrefresh.evaluate", [-1]),
        ("hotrefresh.drain", ["9" * 5000]),
    ]
    for _ in range(messages):
        name, arguments = chosen.choice(nonsense)
        context.broker.app.send_task(name, args=arguments, retry=False)


def drop(context: Context) -> None:
    """Whatever waits in the broker is gone."""
    with contextlib.closing(redis.Redis.from_url(context.broker.url)) as client:
        client.delete(*[key for key in client.keys("*") if QUEUE in key.decode()] or ["nothing"])


def endure(context: Context, rounds: int) -> tuple[int, list[oracle.Truth]]:
    """Rollouts under a hail of messages; returns how many were sent, and what the oracle says of each rollout."""
    chosen, sent, truths, known = random.Random(SEED), 0, [], [1]
    with crew(context, 2, 0.005) as team:
        before = {worker.pid for worker in team.workers}
        for _ in range(rounds):
            row = world.begin(context, batch_size=4, lease_s=2.0)
            known.append(row.id)
            drop(context)  # the wake-up of the start itself
            for _ in range(4):
                ring(context, chosen, known, 20)
                talk_nonsense(context, chosen, 5)
                sent += 25
                if chosen.random() < 0.5:
                    drop(context)
            until(partial(is_finalizable, context, row.id), "the rollout ends")
            truths.append(judged(context, row.id))
            rollouts.rollback(context, row.id)
            ring(context, chosen, known, 10)  # late: it is over
            sent += 10
        until(lambda: not _waiting(context), "the workers have read every message")
        assert {worker.pid for worker in team.workers} == before, "a message ended a worker"
    return sent, truths


def is_finalizable(context: Context, rollout_id: int) -> bool:
    """Whether a rollout has come to its end."""
    return ledger.state(context, rollout_id) == "finalizable"


def _waiting(context: Context) -> int:
    with contextlib.closing(redis.Redis.from_url(context.broker.url)) as client:
        return sum(client.llen(key) for key in client.keys(f"{QUEUE}*") if client.type(key) == b"list")


@pytest.fixture
def hailed(context: Context, tmp_path: Path) -> Context:
    """The world with a gallery of some size."""
    world.build(context, tmp_path / "world", 160)
    return context


@pytest.mark.faults
@pytest.mark.timeout(600 * max(1, FACTOR))
def test_no_message_changes_what_is_true(hailed: Context) -> None:
    sent, truths = endure(hailed, scaled(4))
    report.record(
        report.Figures(
            "wake-ups doubled, reordered, late, dropped, nonsense",
            "every rollout ends, no worker does",
            sent,
            met=all(truth.sound for truth in truths),
            **report.counted(truths),
        )
    )
    assert all(truth.sound for truth in truths), truths
