"""Real workers killed while they work: how long until their batches are worked on again, and what the end looks like."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import redis

from orchestrator.context import Context
from orchestrator.service import rollouts
from tests.faults import ledger, oracle, report, world
from tests.faults.crew import Crew, Orphanage, crew, until
from tests.faults.volume import FACTOR, SEED, scaled

LEASE_S = 2.0
RECOVERY_LIMIT_S = LEASE_S + 5.0
ITEMS, BATCH, PACE_S = 2400, 8, 0.02
# Where workers live, one of them may be planning while `begin` returns.
GOING_ON = ("planned", "deployed", "backfilling")


@pytest.fixture
def two_galleries(context: Context, tmp_path: Path) -> Context:
    """Two galleries, large enough to be worked on for half a minute."""
    world.build(context, tmp_path / "world", ITEMS, names=("texts", "more"))
    return context


def judged(context: Context, rollout_id: int) -> oracle.Truth:
    """The full check of a rollout that should be at its end."""
    truth = oracle.check(context, rollout_id)
    truth.faults += oracle.check_serving(context, rollout_id).faults
    return truth


def kill_many(context: Context, team: Crew, kills: int) -> tuple[Orphanage, list[oracle.Truth]]:
    """Rollout after rollout, workers killed one after the other while they hold batches."""
    orphans, truths, done = Orphanage(context), [], 0
    chosen = random.Random(SEED)
    while done < kills:
        row = world.begin(context, batch_size=BATCH, lease_s=LEASE_S)
        last = time.monotonic()
        while ledger.state(context, row.id) in GOING_ON:
            orphans.look()
            busy = [
                worker for worker in team.workers if ledger.leases_of_process(context, row.id, worker.pid)
            ]
            if (
                done < kills
                and busy
                and len(team.workers) > 1
                and time.monotonic() - last > chosen.uniform(0.2, 1.0)
            ):
                orphans.kill(team, chosen.choice(busy), row.id)
                team.replace_later()
                last, done = time.monotonic(), done + 1
            time.sleep(0.02)
        found = rollouts.reread(context, row.id)
        assert found.state == "finalizable", (found.state, found.reason)
        orphans.settle()
        truths.append(judged(context, row.id))
        rollouts.rollback(context, row.id)
    return orphans, truths


@pytest.mark.faults
@pytest.mark.timeout(900 * max(1, FACTOR))
def test_workers_are_killed_and_their_batches_are_soon_claimed_again(two_galleries: Context) -> None:
    wanted = scaled(60)
    with crew(two_galleries, 3, PACE_S) as team:
        orphans, truths = kill_many(two_galleries, team, wanted)
    times = orphans.recovered_s
    met = all(truth.sound for truth in truths) and bool(times) and max(times) <= RECOVERY_LIMIT_S
    report.record(
        report.Figures(
            "real workers killed → batch claimed again",
            f"{wanted:,} kills; ≤ lease {LEASE_S:g} s + 5 s",
            wanted,
            met=met,
            **report.counted(truths),
            recovery_s=times,
            limit_s=RECOVERY_LIMIT_S,
        )
    )
    assert all(truth.sound for truth in truths), truths
    assert len(times) >= wanted // 2
    assert max(times) <= RECOVERY_LIMIT_S


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_two_rollouts_three_workers_one_killed_every_five_seconds(two_galleries: Context) -> None:
    context = two_galleries
    broker = redis.Redis.from_url(context.broker.url)
    started = time.monotonic()
    kills, emptied = 0, 0
    with crew(context, 3, PACE_S) as team:
        started = time.monotonic()
        rows = [world.begin(context, name, batch_size=BATCH, lease_s=LEASE_S) for name in ("texts", "more")]
        following = [oracle.open_replica(context, name) for name in ("texts", "more")]
        while any(ledger.state(context, row.id) in GOING_ON for row in rows):
            elapsed = time.monotonic() - started
            assert elapsed < 300, [ledger.leases(context, row.id) for row in rows]
            if elapsed > 5 * (kills + 1) and team.workers:
                team.kill(team.workers[0])
                team.replace_later()
                kills += 1
            if elapsed > 8 * (emptied + 1) and emptied < 2:
                broker.flushall()
                emptied += 1
            for replica in following:
                replica.catch_up()
            time.sleep(0.05)
        took_s = time.monotonic() - started
    assert [ledger.state(context, row.id) for row in rows] == ["finalizable"] * 2
    truths = [judged(context, row.id) for row in rows]
    truths += [oracle.check_serving(context, row.id, each) for row, each in zip(rows, following, strict=True)]
    met = all(truth.sound for truth in truths) and kills >= 5 and emptied == 2 and took_s >= 30
    report.record(
        report.Figures(
            "two rollouts, three workers, one killed every 5 s, broker emptied twice",
            "≥ 30 s, every checksum right",
            kills + emptied,
            met=met,
            **report.counted(truths),
            detail={"took_s": round(took_s, 1), "items": 2 * ITEMS, "kills": kills},
        )
    )
    assert all(truth.sound for truth in truths), truths
    assert met, (kills, emptied, took_s)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(context: Context, tmp_path: Path) -> None:
    world.build(context, tmp_path / "world", 160)
    orphans = Orphanage(context)
    with crew(context, 2, PACE_S) as team:
        row = world.begin(context, batch_size=BATCH, lease_s=1.0)
        until(
            lambda: bool(ledger.leases_of_process(context, row.id, team.workers[0].pid)), "it holds a batch"
        )
        orphans.kill(team, team.workers[0], row.id)
        until(lambda: ledger.state(context, row.id) == "finalizable", "the other one ends the rollout")
        orphans.settle()
    truth = judged(context, row.id)
    assert truth.sound, truth
    assert max(orphans.recovered_s) <= RECOVERY_LIMIT_S
