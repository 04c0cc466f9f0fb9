"""Many starts at one moment, and a cancel wherever a worker stands: one winner, and the gallery as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.context import Context
from orchestrator.failpoints import BATCH_POINTS
from orchestrator.service import rollouts
from orchestrator.service.background import worker_environment
from tests.faults import ledger, oracle, report, world
from tests.faults.nursery import Nursery
from tests.faults.test_kill_loop import AROUND
from tests.faults.volume import FACTOR, scaled

PROCESSES = 32
CLI_LIMIT_S = 2.0


def start_at_once(context: Context, nursery: Nursery, processes: int) -> list[str]:
    """So many processes start at one moment; what each of them got."""
    moment = time.time() + 0.02 * processes
    children = [nursery.fork("start", gallery=world.GALLERY, at=moment) for _ in range(processes)]
    results = [child.wait().result for child in children]
    return ["started" if "rollout_id" in result else str(result.get("error")) for result in results]


def run_rounds(context: Context, nursery: Nursery, rounds: int) -> int:
    """Rounds of starts; returns how many had exactly one winner and only refused others."""
    right = 0
    for _ in range(rounds):
        outcomes = sorted(start_at_once(context, nursery, PROCESSES))
        newest = ledger.newest_rollout(context, world.GALLERY)
        right += outcomes == ["ConflictError"] * (PROCESSES - 1) + ["started"]
        assert oracle.glance(context, newest).sound
        rollouts.cancel(context, newest)
    return right


def test_of_many_starts_at_one_moment_one_wins(platform: Context, nursery: Nursery) -> None:
    assert run_rounds(platform, nursery, 2) == 2


@pytest.mark.faults
@pytest.mark.timeout(600 * max(1, FACTOR))
def test_of_many_starts_at_one_moment_one_wins_every_round(platform: Context, nursery: Nursery) -> None:
    rounds = scaled(20)
    right = run_rounds(platform, nursery, rounds)
    report.record(
        report.Figures(
            f"{PROCESSES} processes start at one moment",
            f"one winner in each of {rounds} rounds (a release run: ≥ 200)",
            rounds * PROCESSES,
            met=right == rounds,
            detail={"rounds": rounds},
        )
    )
    assert right == rounds


def cancel_by_command(context: Context, rollout_id: int) -> float:
    """`hotrefresh rollout cancel` as an operator calls it; returns the seconds until it was back."""
    command = [sys.executable, "-P", "-m", "cli.main", "rollout", "cancel", str(rollout_id), "--yes"]
    began = time.monotonic()
    done = subprocess.run(command, env=worker_environment(context.settings), cwd=context.settings.data_dir,
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def cancel_at(context: Context, nursery: Nursery, point: str, action: str) -> tuple[float, int]:
    """Cancel while a worker is dead or frozen at a point; the command's seconds, and the rows that came later."""
    before = oracle.fingerprint(context, world.GALLERY)
    row = world.begin(context)
    child = nursery.fork("task" if point in AROUND else "work", arm=f"{point}={action}:1", rollout_id=row.id)
    ending = child.wait()
    assert ending.how == {"kill": "killed", "freeze": "stopped"}[action], ending
    took_s = cancel_by_command(context, row.id) if ledger.state(context, row.id) == "backfilling" else 0.0
    if not took_s:  # the drain was through before the point: what it made finalizable is rolled back
        rollouts.rollback(context, row.id)
    at_once = {lease.key: lease for lease in ledger.leases(context, row.id)}
    assert oracle.fingerprint(context, world.GALLERY) == before
    if ending.how == "stopped":
        assert child.thaw().how == "exited"
    nursery.run("work", rollout_id=row.id)
    ledger.settle(context, row.id)
    now = ledger.leases(context, row.id)
    later = sum(lease.state == "committed" and at_once[lease.key].state != "committed" for lease in now)
    assert oracle.fingerprint(context, world.GALLERY) == before
    assert ledger.state(context, row.id) in ("cancelled", "rolled_back")
    truth = oracle.check(context, row.id, finished=False)
    truth.faults += oracle.check_serving(context, row.id).faults
    assert truth.sound, truth
    return took_s, later


@pytest.mark.parametrize("point", ["mid_write", "in_commit"])
def test_a_cancel_wins_over_a_frozen_worker(platform: Context, nursery: Nursery, point: str) -> None:
    _, later = cancel_at(platform, nursery, point, "freeze")
    assert later == 0


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_cancel_at_every_point_leaves_the_gallery_as_it_was(platform: Context, nursery: Nursery) -> None:
    found = [
        cancel_at(platform, nursery, point, action) for point in BATCH_POINTS for action in ("kill", "freeze")
    ]
    times = [took_s for took_s, _ in found if took_s]
    later = sum(count for _, count in found)
    report.record(
        report.Figures(
            "cancel at every point of a batch → later rows",
            f"0 rows; the command is back in ≤ {CLI_LIMIT_S:g} s",
            len(found),
            met=later == 0 and max(times) <= CLI_LIMIT_S,
            stale_accepted=later,
            recovery_s=times,
            limit_s=CLI_LIMIT_S,
        )
    )
    assert later == 0
    assert max(times) <= CLI_LIMIT_S


def test_the_command_runs_our_code() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", "import cli; print(cli.__file__)"], env=dict(os.environ),
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert Path(done.stdout.strip()).parents[1] == Path(rollouts.__file__).parents[2]
