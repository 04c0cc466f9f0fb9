"""Leases that ran out are counted once, wherever they are taken back, and nobody waits for the count."""

from __future__ import annotations

import pytest

from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import metrics as metric_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.service import advance, rollouts
from orchestrator.service.sweep import Sweeper
from tests.engine import platform


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def running(world):
    return advance.advance(world, platform.start(world).id)


def hold(world, running, lease_s, count=1):
    with world.engine.begin() as connection:
        return [
            batch_queries.claim_batch(connection, running.id, f"worker-{no}", lease_s) for no in range(count)
        ]


def expire(world):
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE batch SET lease_until = clock_timestamp() WHERE state = 'leased'")


def expired(world, running):
    with world.engine.connect() as connection:
        [row] = metric_queries.lease_expiries(connection, [running.id])
    return row["leases"]


def test_a_batch_that_another_worker_takes_over_is_counted_and_a_first_claim_is_not(world, running):
    [first] = hold(world, running, 0.0)
    assert expired(world, running) == 0
    for times in (1, 2):
        [again] = hold(world, running, 0.0)
        assert again.first_rank == first.first_rank
        assert expired(world, running) == times


def test_the_sweeper_counts_what_it_takes_back_and_leaves_what_is_held(world, running):
    hold(world, running, 30.0, count=2)
    expire(world)
    hold(world, running, 30.0)  # takes one of them over
    Sweeper(world, "test").sweep()
    assert expired(world, running) == 2
    Sweeper(world, "test").sweep()
    assert expired(world, running) == 2


def test_a_cancel_counts_the_leases_that_ran_out_not_those_it_takes_away(world, running):
    hold(world, running, 30.0, count=2)
    rollouts.pause(world, running.id, force=True)
    assert expired(world, running) == 0
    rollouts.resume(world, running.id)
    hold(world, running, 30.0, count=3)
    expire(world)
    assert rollouts.cancel(world, running.id).state == "cancelled"
    assert expired(world, running) == 3


@pytest.mark.parametrize("take_back", ["claim", "sweep"])
def test_nobody_waits_for_who_holds_the_rollout_to_count_an_expiry(world, running, take_back):
    """A commit locks the rollout, then the batch: a count behind the rollout's lock would be a deadlock with it."""
    hold(world, running, 30.0)
    expire(world)
    with world.engine.begin() as committing, world.engine.begin() as other:
        rollout_queries.lock_rollout(committing, running.id)
        other.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        if take_back == "claim":
            assert batch_queries.claim_batch(other, running.id, "other", 30.0) is not None
        else:
            assert batch_queries.release_expired(other) == 1
    assert expired(world, running) == 1
