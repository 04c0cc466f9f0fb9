"""The outbox and its relay, the sweeper's duty, counters against a recount: what recovers what a death left behind."""

from __future__ import annotations

import pytest

from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import wakeups as wakeup_queries
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, finish, rollouts, sweep, wakeups
from orchestrator.service.sweep import Sweeper
from tests.engine import platform
from workers.drain import drain


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def running(world):
    return advance.advance(world, platform.start(world).id)


@pytest.fixture
def rung(world, monkeypatch):
    """What is rung, in order; the broker itself is left out."""
    calls = []
    monkeypatch.setattr(world.broker, "ring", lambda task, lane, *ids: calls.append((task, lane, ids)))
    return calls


def waiting(context):
    with context.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT task, rollout_id FROM outbox WHERE sent_at IS NULL ORDER BY id"
        )
        return [tuple(row) for row in rows]


def status(context, rollout_id):
    with context.engine.connect() as connection:
        return read_view(connection, "rollout_status", id=rollout_id)[0]


def test_a_wake_up_waits_while_the_broker_is_away_and_is_rung_later(world, running, monkeypatch):
    from orchestrator.errors import UnreachableError

    wakeups.relay(world)

    def away(*arguments):
        raise UnreachableError("no broker")

    real = world.broker.ring
    monkeypatch.setattr(world.broker, "ring", away)
    rollouts.pause(world, running.id)
    rollouts.resume(world, running.id)
    assert waiting(world) == [("drain", running.id)]
    assert not wakeups.relay(world)
    monkeypatch.setattr(world.broker, "ring", real)
    assert wakeups.relay(world)
    assert waiting(world) == []


def test_one_wake_up_waits_however_often_it_is_asked_for(world, running, rung):
    wakeups.relay(world)
    rung.clear()
    for _ in range(1000):
        with world.engine.begin() as connection:
            wakeups.request_wakeup(connection, "drain", running.id)
    assert len(waiting(world)) == 1
    wakeups.relay(world)
    assert [(task, lane, ids[0]) for task, lane, ids in rung] == [("drain", "backfill", running.id)]


def test_a_drain_is_rung_for_every_live_worker(world, running, rung):
    with world.engine.begin() as connection:
        for name in "abc":
            worker_queries.register_worker(
                connection, worker_id=name, host="h", pid=1, device="cpu", version="0", interval_s=60
            )
        wakeups.request_wakeup(connection, "drain", running.id)
        wakeups.request_wakeup(connection, "evaluate", running.id)
    rung.clear()
    wakeups.relay(world)
    assert [task for task, _, _ in rung].count("drain") == 3
    assert [task for task, _, _ in rung].count("evaluate") == 1


def test_only_one_process_has_the_duty_and_another_takes_it_when_its_lease_ends(world):
    first, second = Sweeper(world, "first"), Sweeper(world, "second")
    assert first.sweep()
    assert not second.sweep()
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE duty SET until = clock_timestamp() - interval '1 second'")
    assert second.sweep()
    assert not first.sweep()
    second.give_up()
    assert first.sweep()


def test_the_sweeper_ends_leases_and_rings_for_what_nobody_was_told_of(world, running, rung):
    with world.engine.begin() as connection:
        batch_queries.claim_batch(connection, running.id, "dead", 0.0)
        connection.exec_driver_sql("DELETE FROM outbox")
    Sweeper(world, "test").sweep()
    assert status(world, running.id)["leased"] == 0
    assert [task for task, _, ids in rung] == ["drain"]


@pytest.mark.parametrize(
    ("verb", "over"), [(rollouts.cancel, "cancelled"), (rollouts.rollback, "rolled_back")]
)
def test_the_sweeper_acknowledges_for_workers_that_died(world, running, verb, over):
    with world.engine.begin() as connection:
        batch_queries.claim_batch(connection, running.id, "dead", 0.4)
    assert verb(world, running.id).state in ("cancelling", "rolling_back")
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE batch SET lease_until = clock_timestamp() WHERE state = 'leased'")
    Sweeper(world, "test").sweep()
    assert rollouts.reread(world, running.id).state == over


def test_the_sweeper_completes_what_a_worker_left_right_after_its_last_commit(world, running):
    drain(world, running.id, owner="test")  # and died before it said that all is done
    assert rollouts.reread(world, running.id).state == "backfilling"
    Sweeper(world, "test").sweep()
    assert rollouts.reread(world, running.id).state == "finalizable"


def test_a_postponed_finalize_is_rung_for(world, running, rung):
    finish.finalize(world, running.id, when_ready=True)
    platform.work(world, running.id)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM outbox")
    rung.clear()
    Sweeper(world, "test").sweep()
    assert ("finalize", running.id) in [(task, ids[0]) for task, _, ids in rung]


def test_counters_that_are_wrong_are_found_corrected_and_told(world, running):
    drain(world, running.id, owner="test")
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE rollout SET committed_items = committed_items - 3 WHERE id = {running.id}"
        )
    assert sweep.recount(world, running.id) == {"committed_items": (237, 240)}
    assert sweep.recount(world, running.id) == {}
    with world.engine.connect() as connection:
        assert read_view(connection, "audit", action="rollout.counters_corrected")


def test_extents_that_no_rollout_knows_go_in_the_second_round_and_no_others(world, running, monkeypatch):
    from pathlib import Path

    from orchestrator.store import new_folder

    monkeypatch.setattr(sweep, "RECOUNT_EVERY_S", 0.0)
    orphan = Path(new_folder(world.settings.extents, running.gallery_id))
    sweeper = Sweeper(world, "test")
    sweeper.sweep()
    assert orphan.exists()
    sweeper.sweep()
    assert not orphan.exists()
    assert Path(running.extent_uri).exists()


def test_a_worker_silent_for_long_is_signed_off_and_comes_back_by_its_heartbeat(world):
    with world.engine.begin() as connection:
        worker_queries.register_worker(
            connection, worker_id="w", host="h", pid=1, device="cpu", version="0", interval_s=1
        )
        connection.exec_driver_sql(
            "UPDATE worker SET last_heartbeat = clock_timestamp() - interval '11 seconds'"
        )
    Sweeper(world, "test").sweep()
    with world.engine.begin() as connection:
        assert connection.exec_driver_sql(
            "SELECT stopped_at IS NOT NULL FROM worker WHERE id = 'w'"
        ).scalar_one()
        worker_queries.heartbeat(connection, "w", successes=0, errors=0, last_error=None)
    with world.engine.connect() as connection:
        [row] = [r for r in read_view(connection, "worker_health") if r["worker"] == "w"]
        assert row["live"]


def test_sent_wake_ups_are_forgotten_after_a_while(world, running):
    wakeups.wake(world, "drain", running.id)
    with world.engine.begin() as connection:
        assert wakeup_queries.forget_sent(connection, 3600) == 0
        assert wakeup_queries.forget_sent(connection, 0) > 0


def test_without_a_worker_the_status_says_so(world, running):
    assert status(world, running.id)["sub_state"] == "no_worker"
    with world.engine.connect() as connection:
        assert {r["queue_state"] for r in read_view(connection, "queue_status", rollout=running.id)} == {
            "no_worker"
        }
