"""Processes frozen past their lease, replaced, then thawed: nothing of what they still send is accepted."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from orchestrator.context import Context
from orchestrator.service import rollouts
from tests.faults import ledger, oracle, report, world
from tests.faults.nursery import Child, Nursery
from tests.faults.test_actions import bring_to_the_end
from tests.faults.volume import FACTOR, scaled

LEASE_S = 1.0
AT_ONCE = 10
GALLERY, ITEMS = "many", 120
FROM_CLAIMED_TO_IN_COMMIT = (
    "claimed", "decoded", "mid_encode", "before_write", "mid_write", "written", "synced", "in_commit",
)  # fmt: skip
Held = dict[int, ledger.Lease]


@pytest.fixture
def crowd(platform: Context, tmp_path: Path) -> Context:
    """The small world, and a gallery with batches enough for many workers at once."""
    world.add_gallery(platform, tmp_path / "world", GALLERY, ITEMS)
    return platform


def freeze_some(
    context: Context, nursery: Nursery, rollout_id: int, points: list[str]
) -> list[tuple[Child, Held]]:
    """Children that stand still at these points, each with the batches that it held when it froze."""
    children = [nursery.fork("work", arm=f"{point}=freeze", rollout_id=rollout_id) for point in points]
    frozen = []
    for child in children:
        if child.wait().how == "stopped":
            held = ledger.leases(context, rollout_id, f"forked-{child.pid}")
            frozen.append((child, {lease.key: lease for lease in held}))
    return frozen


def accepted(context: Context, rollout_id: int, zombie: Child, held: Held) -> int:
    """Thaw one; how many of its stale commits landed."""
    before = {lease.key: lease for lease in ledger.leases(context, rollout_id)}
    ending = zombie.thaw()
    assert ending.how == "exited", ending
    said = set(ending.result.get("committed", ()))
    after = {lease.key: lease for lease in ledger.leases(context, rollout_id)}
    by_it = sum(after[key].seq in said and after[key].fence != held[key].fence for key in held)
    changed = sum(
        lease.state == "committed" and (after[key].seq, after[key].crc) != (lease.seq, lease.crc)
        for key, lease in before.items()
    )
    return by_it + changed


def replace(context: Context, nursery: Nursery, rollout_id: int, how: str) -> None:
    """Somebody else takes the frozen ones' batches: does them, or only claims them, or the rollout is paused."""
    if how == "done":
        nursery.run("work", rollout_id=rollout_id)
    elif how == "paused":
        rollouts.pause(context, rollout_id)
    else:
        while ledger.claim(context, rollout_id, "rival", 60.0) is not None:
            pass


def run_waves(context: Context, nursery: Nursery, zombies: int) -> tuple[int, int, int]:
    """Waves of frozen workers, each wave's batches taken in another way. Returns thawed, held batches, accepted."""
    thawed = leases = stale = 0
    points = itertools.cycle(FROM_CLAIMED_TO_IN_COMMIT)
    for how in itertools.cycle(("done", "claimed", "paused")):
        if thawed >= zombies:
            return thawed, leases, stale
        row = world.begin(context, GALLERY, batch_size=2, lease_s=LEASE_S)
        frozen = freeze_some(context, nursery, row.id, list(itertools.islice(points, AT_ONCE)))
        assert frozen
        time.sleep(LEASE_S + 0.05)
        ledger.expire_leases(context, row.id)
        replace(context, nursery, row.id, how)
        for zombie, held in frozen:
            stale += accepted(context, row.id, zombie, held)
            leases += len(held)
            thawed += bool(held)  # on a slow machine another one may have taken its batches before we looked
        assert bring_to_the_end(context, nursery, GALLERY) == row.id
        truth = oracle.check(context, row.id)
        assert truth.sound, truth
        rollouts.rollback(context, row.id)
    raise AssertionError("unreachable")


def test_thawed_zombies_commit_nothing(crowd: Context, nursery: Nursery) -> None:
    thawed, leases, stale = run_waves(crowd, nursery, 30)
    assert stale == 0
    assert leases >= thawed


@pytest.mark.faults
@pytest.mark.timeout(1200 * max(1, FACTOR))
def test_hundreds_of_thawed_zombies_commit_nothing(crowd: Context, nursery: Nursery) -> None:
    wanted = scaled(500)
    thawed, leases, stale = run_waves(crowd, nursery, wanted)
    report.record(
        report.Figures(
            "frozen past the lease, replaced, thawed",
            f"0 accepted of {wanted:,}",
            thawed,
            met=stale == 0 and thawed >= wanted,
            stale_accepted=stale,
            detail={"stale batches in their hands": leases},
        )
    )
    assert stale == 0
