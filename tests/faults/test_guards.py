"""Each guard of the engine by itself, in the smallest fault that it alone stops. The safety mutants are judged by these."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from orchestrator.context import Context
from orchestrator.errors import ConflictError
from orchestrator.ledger.rows import Claim
from orchestrator.service import rollouts
from orchestrator.store import CorruptExtentError
from tests.faults import ledger, oracle, world


def claim(context: Context, rollout_id: int, owner: str = "one", lease_s: float = 60.0) -> Claim:
    claimed = ledger.claim(context, rollout_id, owner, lease_s)
    assert claimed is not None
    return claimed


def test_a_commit_under_an_older_fence_is_refused(platform: Context) -> None:
    row = world.begin(platform)
    old = claim(platform, row.id)
    ledger.expire_leases(platform, row.id)
    new = claim(platform, row.id, "two")
    assert ledger.commit(platform, old) is None
    assert ledger.commit(platform, new) is not None


def test_a_commit_of_an_older_generation_is_refused(platform: Context) -> None:
    row = world.begin(platform)
    claimed = claim(platform, row.id)
    older = dataclasses.replace(claimed, generation=claimed.generation - 1)
    assert ledger.commit(platform, older) is None
    assert ledger.commit(platform, claimed) is not None


def test_a_commit_sent_twice_lands_once(platform: Context) -> None:
    row = world.begin(platform)
    claimed = claim(platform, row.id)
    assert ledger.commit(platform, claimed) is not None
    assert ledger.commit(platform, claimed) is None


def test_a_commit_into_a_paused_rollout_is_refused_even_after_it_goes_on(platform: Context) -> None:
    row = world.begin(platform)
    claimed = claim(platform, row.id)
    rollouts.pause(platform, row.id)
    assert ledger.commit(platform, claimed) is None
    rollouts.resume(platform, row.id)
    assert ledger.commit(platform, claimed) is None


def test_a_commit_into_a_cancelled_rollout_is_refused(platform: Context) -> None:
    row = world.begin(platform)
    claimed = claim(platform, row.id)
    rollouts.cancel(platform, row.id)
    assert ledger.commit(platform, claimed) is None


def test_a_second_active_rollout_is_refused_by_the_database(platform: Context) -> None:
    row = world.begin(platform)
    with pytest.raises(ConflictError):
        world.begin(platform)
    with pytest.raises(DBAPIError, match="one_active"):
        ledger.insert_copy_of_rollout(platform, row.id)


def test_no_commit_before_its_bytes_are_synced(platform: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.drain import drain

    row = world.begin(platform)
    events: list[str] = []
    for name in ("pwrite", "write", "fdatasync", "fsync"):
        real = getattr(os, name)

        def noted(*arguments: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            events.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, noted)
    at_commit: list[str] = []
    drain(
        platform,
        row.id,
        owner="one",
        committed=lambda seq: at_commit.append(events[-1] if events else "nothing"),
    )
    assert len(at_commit) == row.n_batches
    assert set(at_commit) <= {"fdatasync", "fsync"}, "bytes were committed that are not known to be on disk"


def test_bytes_that_changed_after_their_commit_are_not_served(platform: Context) -> None:
    row = world.begin(platform)
    assert world.work(platform, row.id).state == "finalizable"
    vectors = next(Path(row.extent_uri).glob("vectors*"))
    content = bytearray(vectors.read_bytes())
    content[9] ^= 4
    vectors.write_bytes(bytes(content))
    with pytest.raises(CorruptExtentError):
        oracle.open_replica(platform, world.GALLERY)


def test_a_lease_holds_until_it_ends_and_no_longer(platform: Context) -> None:
    row = world.begin(platform)
    held = [claim(platform, row.id) for _ in range(row.n_batches)]
    assert ledger.claim(platform, row.id, "two", 60.0) is None, "a lease that had not ended was taken"
    ledger.expire_leases(platform, row.id)
    again = [claim(platform, row.id, "two") for _ in held]
    assert [each.attempt for each in again] == [2] * len(held), "a try was not counted when it began"
    assert not ledger.renew(platform, held[0], 60.0), "a lease that somebody else has now was renewed"
    assert ledger.renew(platform, again[0], 60.0)


def test_a_lease_that_ran_out_by_our_own_clock_is_not_held(platform: Context) -> None:
    from workers.leases import LeaseKeeper

    row = world.begin(platform)
    keeper = LeaseKeeper(platform.engine, 0.2)  # not opened: nothing renews, as behind a broken connection
    claimed = claim(platform, row.id)
    keeper.hold(claimed, time.monotonic())
    assert keeper.holds(claimed)
    time.sleep(0.25)
    assert not keeper.holds(claimed)


def test_two_claims_at_once_take_two_batches_without_waiting(platform: Context) -> None:
    row = world.begin(platform)
    first, second = ledger.claims_at_once(platform, row.id)
    assert first is not None
    assert second is not None
    assert dataclasses.replace(first, fence=0) != dataclasses.replace(second, fence=0)


def test_a_rollout_with_holes_ends_and_the_log_is_serial(platform: Context) -> None:
    row = world.begin(platform)
    assert world.work(platform, row.id).state == "finalizable"
    truth = oracle.check(platform, row.id)
    assert truth.sound, truth
    assert (truth.items, truth.committed, truth.quarantined) == (48, 47, 1)
    assert oracle.check_serving(platform, row.id).sound


def test_a_rollback_reaches_a_replica_that_follows(platform: Context) -> None:
    before = oracle.fingerprint(platform, world.GALLERY)
    follower = oracle.open_replica(platform, world.GALLERY)
    row = world.begin(platform)
    assert world.work(platform, row.id).state == "finalizable"
    assert oracle.check_serving(platform, row.id, follower).sound
    rollouts.rollback(platform, row.id)
    assert oracle.check_serving(platform, row.id, follower).sound
    assert oracle.fingerprint(platform, world.GALLERY) == before
    assert oracle.check(platform, row.id).sound
