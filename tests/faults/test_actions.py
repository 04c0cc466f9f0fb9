"""Every fail point × every action, once each: whatever happens there, the rollout can be ended and nothing is wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.context import Context
from orchestrator.core.states import TERMINAL
from orchestrator.failpoints import ACTIONS, PLAN_POINTS, POINTS, REPLICA_POINTS, SNAPSHOT_POINTS
from orchestrator.service import advance, finish, rollouts
from tests.faults import ledger, oracle, report, world
from tests.faults.nursery import Child, Nursery
from tests.faults.test_kill_loop import AROUND
from tests.faults.volume import FACTOR, scaled

LEASE_S = 0.6
# A hang is the supervisor's to see (tests/engine/test_supervisor.py): here nobody would end it. A snapshot is no part of a
# rollout: tests/engine/test_restart.py.
PAIRS = [
    (point, action)
    for point in sorted(POINTS - set(SNAPSHOT_POINTS))
    for action in ACTIONS
    if action != "hang"
]


def hurt(context: Context, nursery: Nursery, point: str, action: str) -> bool:
    """One rollout with one fault in it, brought to its end and judged. Returns whether the fault really happened."""
    before = oracle.fingerprint(context, world.GALLERY)
    follower = oracle.open_replica(context, world.GALLERY)
    child = _child_at(context, nursery, point, action)
    ending = child.wait()
    happened = ending.how in ("killed", "stopped") or point in ending.result.get("fired", [])
    if ending.how == "stopped":
        _outlive(context, nursery, child, point)
    elif ending.how == "hanging":
        child.kill()
        raise AssertionError(f"{point}={action} hangs")
    newest = bring_to_the_end(context, nursery)
    truths = oracle.check(context, newest), oracle.check_serving(context, newest, follower)
    assert all(truth.sound for truth in truths), (point, action, truths)
    assert rollouts.rollback(context, newest).state == "rolled_back"
    assert oracle.fingerprint(context, world.GALLERY) == before
    return happened


def _child_at(context: Context, nursery: Nursery, point: str, action: str) -> Child:
    arm = f"{point}={action}"
    if point in ("before_insert", "inserted"):
        return nursery.fork("start", arm=arm, gallery=world.GALLERY)
    rollout_id = world.begin(context, batch_size=8, lease_s=LEASE_S).id
    if point == "in_state_change":
        return nursery.fork("verb", arm=arm, name="pause", rollout_id=rollout_id)
    if point == "published":
        return nursery.fork("verb", arm=arm, name="resume", rollout_id=rollout_id)
    if point in PLAN_POINTS:
        return nursery.fork("revise", arm=arm, rollout_id=rollout_id)
    if point in REPLICA_POINTS:
        return nursery.fork("follow", arm=arm, gallery=world.GALLERY, rollout_id=rollout_id)
    return nursery.fork("task" if point in AROUND else "work", arm=arm, rollout_id=rollout_id)


def _outlive(context: Context, nursery: Nursery, child: Child, point: str) -> None:
    """Wait until the frozen child's lease has run out and another worker has done its batches; then thaw it."""
    time.sleep(LEASE_S + 0.05)
    if point not in ("before_insert", "inserted", "published", "in_state_change"):
        newest = ledger.newest_rollout(context, world.GALLERY)
        held = ledger.leases(context, newest, f"forked-{child.pid}")
        nursery.run("work", rollout_id=newest)
        after = {lease.key: lease for lease in ledger.leases(context, newest)}
        assert all(after[lease.key].state == "committed" for lease in held), (
            "nobody else did the frozen one's batch"
        )
        thawed = child.thaw()
        now = {lease.key: lease for lease in ledger.leases(context, newest)}
        changed = [
            now[key] for key, lease in after.items() if lease.state == "committed" and now[key] != lease
        ]
        assert not changed, f"the thawed one changed what was committed: {changed}"
    else:
        thawed = child.thaw()
    assert thawed.how == "exited", thawed


def bring_to_the_end(context: Context, nursery: Nursery, gallery: str = world.GALLERY) -> int:
    """What an operator and healthy workers do after the fault: the newest rollout becomes finalizable."""
    newest = ledger.newest_rollout(context, gallery)
    if ledger.state(context, newest) in TERMINAL:  # the fault came before there was a rollout
        newest = world.begin(context, gallery, batch_size=8, lease_s=LEASE_S).id
    deadline = time.monotonic() + 30
    while (state := ledger.state(context, newest)) != "finalizable":
        assert time.monotonic() < deadline, (
            f"rollout {newest} stays {state}: {ledger.leases(context, newest)}"
        )
        if state == "paused":
            rollouts.resume(context, newest)
        ledger.expire_leases(context, newest)
        ledger.forget_waits(context, newest)
        advance.advance(context, newest)
        nursery.run("work", rollout_id=newest)
        finish.complete(context, newest)
    return newest


def run_pairs(context: Context, nursery: Nursery, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Hurt at each pair; returns those whose fault did not happen."""
    return [pair for pair in pairs if not hurt(context, nursery, *pair)]


def test_every_point_survives_an_exception(platform: Context, nursery: Nursery) -> None:
    missed = run_pairs(platform, nursery, [pair for pair in PAIRS if pair[1] == "raise"])
    assert not missed, f"faults that never happened: {missed}"


@pytest.mark.faults
@pytest.mark.timeout(600 * max(1, FACTOR))
def test_every_point_survives_every_action(platform: Context, nursery: Nursery) -> None:
    rounds = scaled(1)
    missed = [pair for _ in range(rounds) for pair in run_pairs(platform, nursery, PAIRS)]
    report.record(
        report.Figures(
            "each fail point × each action",
            f"{len(PAIRS)} pairs, each at least once",
            len(PAIRS) * rounds - len(missed),
            met=not missed,
        )
    )
    assert not missed, f"faults that never happened: {missed}"


def test_a_commit_whose_answer_was_lost_is_looked_up_not_redone(platform: Context, nursery: Nursery) -> None:
    row = world.begin(platform)
    done = nursery.run("unseen", rollout_id=row.id).result
    assert done["fired"] == ["commit_unseen"]
    assert done["failure"] is None
    assert done["refused"] == 0
    assert len(done["committed"]) == len(ledger.leases(platform, row.id)) == row.n_batches
    assert finish.complete(platform, row.id).state == "finalizable"
    assert oracle.check(platform, row.id).sound


def test_the_oracle_sees_one_flipped_bit(platform: Context) -> None:
    row = world.begin(platform)
    assert world.work(platform, row.id).state == "finalizable"
    assert oracle.check(platform, row.id).sound
    vectors = next(Path(row.extent_uri).glob("vectors*"))
    content = bytearray(vectors.read_bytes())
    content[5] ^= 1
    vectors.write_bytes(bytes(content))
    found = oracle.check(platform, row.id)
    assert found.wrong_bytes
    assert not found.sound
