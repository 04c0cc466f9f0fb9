"""SIGKILL at every fail point, over and over, on one ledger: the next process goes on, and at the end nothing is wrong."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.context import Context
from orchestrator.failpoints import BATCH_POINTS, CONTROL_POINTS, PLAN_POINTS, POINTS, REPLICA_POINTS
from orchestrator.service import advance, finish, rollouts
from tests.faults import ledger, oracle, report, world
from tests.faults.nursery import Nursery
from tests.faults.volume import FACTOR, ROOT, SEED, scaled

# The points that lie in the worker's task, around the drain.
AROUND = {"heard", "acked"}
PLANNED_VERBS = ("pause", "resume", "cancel")


class Victims:
    """Rollouts on one gallery, one after the other, worked on by children that are killed."""

    def __init__(self, context: Context, nursery: Nursery, seed: int, gallery: str) -> None:
        self.context, self.nursery, self.gallery = context, nursery, gallery
        self.random = random.Random(seed)
        self.rollout_id = ledger.newest_rollout(context, gallery)
        self.fired: Counter[str] = Counter()
        self.truths: list[oracle.Truth] = []
        self.follower = oracle.open_replica(context, gallery)
        self.before = oracle.fingerprint(context, gallery)

    def kill_at(self, point: str) -> None:
        """One cycle: a child is killed at the point, or does all there was to do without coming by."""
        if point in CONTROL_POINTS:
            self._kill_a_verb(point)
        else:
            self._kill_a_worker(point)

    def _kill_a_worker(self, point: str) -> None:
        self._ensure_work()
        step = "task" if point in AROUND else "follow" if point in REPLICA_POINTS else "work"
        step = "revise" if point in PLAN_POINTS else step
        nth = (
            1
            if point in (*AROUND, *PLAN_POINTS)
            else self.random.randint(1, 2 if point in REPLICA_POINTS else 3)
        )
        arguments = {"gallery": self.gallery} if step == "follow" else {}
        self._run(step, point, nth, rollout_id=self.rollout_id, **arguments)
        ledger.expire_leases(self.context, self.rollout_id)
        ledger.forgive_attempts(self.context, self.rollout_id)
        self._look()
        if finish.complete(self.context, self.rollout_id).state == "finalizable":
            self._end()

    def _kill_a_verb(self, point: str) -> None:
        if point in ("before_insert", "inserted"):
            self._end()
            self._run("start", point, 1, gallery=self.gallery)
            return
        self._ensure_work()
        before = ledger.state(self.context, self.rollout_id)
        name = self.random.choice(PLANNED_VERBS if before == "backfilling" else PLANNED_VERBS[1:])
        nth = self.random.randint(1, 2)
        if point == "published":  # the verb's own transaction has ended; the wake-ups stay to be rung again
            name, nth = "resume", 1
        if self._run("verb", point, nth, rollout_id=self.rollout_id, name=name):
            after = ledger.state(self.context, self.rollout_id)
            assert after == before, (
                f"{name} was killed before its transaction ended, and {before} became {after}"
            )
        self._look()

    def _run(self, step: str, point: str, nth: int, **arguments: object) -> bool:
        ending = self.nursery.run(step, arm=f"{point}=kill:{nth}", **arguments)
        assert "error" not in ending.result, ending.result
        assert not ending.result.get("wrong"), ending.result
        self.fired[point] += ending.killed
        return ending.killed

    def _ensure_work(self) -> None:
        """A rollout with batches to claim; what a killed start or verb left behind is gone on with."""
        newest = ledger.newest_rollout(self.context, self.gallery)
        state = ledger.state(self.context, newest)
        if state in ("cancelling", "rolling_back"):
            state = ledger.settle(self.context, newest)
        if state == "paused":
            rollouts.resume(self.context, newest)
        elif state in ("planned", "deployed"):
            assert advance.advance(self.context, newest).state == "backfilling"
        elif state != "backfilling":
            self._end()
            newest = world.begin(self.context, self.gallery).id
        self.rollout_id = newest

    def _look(self) -> None:
        truth = oracle.glance(self.context, self.rollout_id)
        assert truth.sound, truth

    def _end(self) -> None:
        """The oracle judges the rollout, and it is taken back: the gallery is what it was before."""
        newest = ledger.newest_rollout(self.context, self.gallery)
        state = ledger.settle(self.context, newest)
        if state not in ("cancelled", "rolled_back", "finalized"):
            whole = state == "finalizable"
            if whole:
                assert self.nursery.run("evaluate", rollout_id=newest).result.get("batches", 0) > 0
            for truth in (
                oracle.check(self.context, newest, finished=whole),
                oracle.check_serving(self.context, newest, self.follower),
            ):
                assert truth.sound, truth
                self.truths.append(truth)
            (rollouts.cancel if state == "planned" else rollouts.rollback)(self.context, newest)
        assert oracle.fingerprint(self.context, self.gallery) == self.before

    def finish(self) -> None:
        """Go on with what is open until it ends well, and judge it."""
        self._ensure_work()
        assert not self.nursery.run("work", rollout_id=self.rollout_id).result["failure"]
        assert finish.complete(self.context, self.rollout_id).state == "finalizable"
        self._end()


def test_points_are_placed() -> None:
    sources = "".join(
        path.read_text()
        for folder in ("orchestrator", "workers")
        for path in Path(ROOT / folder).rglob("*.py")
    )
    assert {point for point in POINTS if f'"{point}")' not in sources and f'"{point}" if' not in sources
            and f'else "{point}")' not in sources} == set()  # fmt: skip


def run_cycles(context: Context, nursery: Nursery, cycles: int, gallery: str = world.GALLERY) -> Victims:
    """Kill at whichever point fired least so far, until there were that many kills."""
    points = [*BATCH_POINTS, *REPLICA_POINTS, *CONTROL_POINTS, *PLAN_POINTS]
    victims = Victims(context, nursery, SEED, gallery)
    for _ in range(3 * cycles):
        if victims.fired.total() >= cycles:
            break
        least = min(victims.fired[point] for point in points)
        victims.kill_at(victims.random.choice([p for p in points if victims.fired[p] == least]))
    victims.finish()
    never = [point for point in points if not victims.fired[point]]
    assert not never, f"fail points that never fired: {never}"
    assert victims.fired.total() >= cycles, (
        f"only {victims.fired.total()} of {cycles} kills in three times the cycles"
    )
    return victims


def test_killed_at_every_point_nothing_is_lost(platform: Context, nursery: Nursery) -> None:
    victims = run_cycles(platform, nursery, 100)
    assert sum(truth.committed for truth in victims.truths) > 0


@pytest.mark.faults
@pytest.mark.timeout(1200 * max(1, FACTOR))
def test_thousands_killed_at_every_point_nothing_is_lost(
    platform: Context, nursery: Nursery, tmp_path: Path
) -> None:
    wanted = scaled(2000, least=80)
    world.add_gallery(platform, tmp_path / "world", "more", 48)
    # Two lanes, a gallery each: their children share servers and disk, as workers do.
    with (
        contextlib.closing(Nursery(platform.settings, tmp_path / "more.log")) as second,
        ThreadPoolExecutor(2) as lanes,
    ):
        running = [
            lanes.submit(run_cycles, platform, each, wanted // 2, gallery)
            for each, gallery in ((nursery, world.GALLERY), (second, "more"))
        ]
        victims = [each.result() for each in running]
    fired = victims[0].fired + victims[1].fired
    truths = [truth for each in victims for truth in each.truths]
    report.record(
        report.Figures(
            "kill −9 at fail points (forked)",
            f"{wanted:,} kills, every point",
            fired.total(),
            met=fired.total() >= wanted,
            **report.counted(truths),
            detail={"fired": dict(fired), "rollouts": len(truths) // 2, "seed": SEED},
        )
    )
