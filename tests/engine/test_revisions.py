"""Revisions of a plan: whatever happens between two of them, every vector ends up on the item it was made from."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy.exc import IntegrityError

from orchestrator import failpoints
from orchestrator.core import plan
from orchestrator.errors import ConflictError
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import plans as plan_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, items, poison, rollouts, tuning
from orchestrator.service.invariants import check_invariants
from orchestrator.service.revisions import write_revision
from orchestrator.serving.matrix import plan_rows, rows_of_ranks
from orchestrator.serving.replica import Replica
from tests.engine import platform
from tests.engine.test_living import assert_right, gallery_of, pictures, some_batches
from workers.pipeline import Pipeline

LEASE_S = 30.0  # longer leases than a rollout gives are endless ones


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def running(world):
    return advance.advance(world, platform.start(world).id)


def random_priority(n, seed):
    """A few rows first, all others as they are."""
    rng = np.random.default_rng(seed)
    priority = np.zeros(n, np.float32)
    priority[rng.choice(n, n // 3, replace=False)] = rng.integers(1, 5, n // 3)
    return priority


def open_pipeline(context, row):
    with context.engine.connect() as connection:
        model = model_queries.model_by_name(connection, "kin")
    return Pipeline(
        context, row, context.encoder(model), "slow", threading.Event(), threading.Event(), float("inf"), lambda seq: None
    )  # fmt: skip


def claim(context, rollout_id):
    with context.engine.begin() as connection:
        return batch_queries.claim_batch(connection, rollout_id, "slow", LEASE_S)


def plan_in_ledger(context, rollout_id):
    with context.engine.connect() as connection:
        return plan.from_chunks(rollout_queries.plan_chunks(connection, rollout_id))


class Storm:
    """Claims, commits, failures, splits, cuts, items that come, change and go, and revisions, drawn from a seed."""

    def __init__(self, context, row, folder, seed):
        self.context, self.row, self.folder = context, row, folder
        self.random = random.Random(seed)
        self.line = open_pipeline(context, row)
        self.held = []
        self.ranks_of_committed = {}
        self.revisions = self.changes = 0
        self.keys = [
            f"class-{c:02d}/{n}.png" for c in range(platform.CLASSES) for n in range(platform.PER_CLASS)
        ]

    def step(self):
        act = self.random.choices(
            (self.take, self.commit, self.let_go, self.fail, self.split, self.cut, self.change, self.revise),
            weights=(8, 6, 2, 2, 2, 1, 2, 5),
        )[0]
        act()
        self.look()

    def take(self):
        claimed = claim(self.context, self.row.id)
        if claimed is None:
            return
        if claimed.attempt > poison.MAX_ATTEMPTS and claimed.n > 1:
            poison.isolate(
                self.context, claimed
            )  # an item alone would go into quarantine: nothing is wrong with it
            return
        self.line.leases.hold(claimed, time.monotonic())
        self.held.append(self.line.prepare(claimed))

    def pick(self):
        return self.held.pop(self.random.randrange(len(self.held))) if self.held else None

    def commit(self):
        if (work := self.pick()) is not None:
            work.encoded = self.line.encoder.encode(work.prepared)
            before = self.line.result.batches
            self.line.store_and_commit(work)
            assert self.line.result.batches == before + 1, "the lease was ours"
            if work.claim.first_rank < self.row.plan_items:
                for place, row in enumerate(work.rows.tolist()):
                    self.ranks_of_committed[row] = work.claim.first_rank + place

    def let_go(self):
        if (work := self.pick()) is not None:
            self.line.release(work.claim)

    def fail(self):
        if (work := self.pick()) is not None:
            poison.batch_failed(
                self.context, work.claim, "on purpose", "test", hopeless=self.random.random() < 0.5
            )

    def split(self):
        if (work := self.pick()) is not None:
            if work.claim.n == 1:
                self.held.append(work)
                return
            with self.context.engine.begin() as connection:
                rollouts.locked(connection, self.row.id)
                assert batch_queries.split_batch(connection, work.claim)

    def cut(self):
        tuning.set_values(self.context, self.row.id, {"batch_size": self.random.choice((5, 9, 16, 23))})

    def change(self):
        key = self.keys.pop(self.random.randrange(len(self.keys)))
        kind = self.random.choice(("delete", "update", "add"))
        if kind == "delete":
            items.delete_items(self.context, "pics", [key])
            return
        self.keys.append(key)
        self.changes += 1
        if kind == "add":
            self.keys.append(f"new/{self.changes}.png")
        change = items.update_items if kind == "update" else items.add_items
        change(self.context, "pics", pictures(self.folder / f"{self.changes}", [self.keys[-1]], self.changes))

    def revise(self):
        priority = random_priority(self.row.plan_items, self.random.randrange(1000))
        measure = self.random.choice(("flips", "demand", "flips+demand"))
        self.revisions += write_revision(self.context, self.row.id, measure, priority) is not None

    def look(self):
        """The plan is a permutation, committed items keep their ranks, and those that are held their rows."""
        rank_of = plan_in_ledger(self.context, self.row.id)
        for row, rank in self.ranks_of_committed.items():
            assert rank_of[row] == rank
        row_of = plan.invert(rank_of)
        for work in self.held:
            if (first := work.claim.first_rank) < self.row.plan_items:
                assert (row_of[first : first + work.claim.n] == work.rows).all()


@pytest.mark.parametrize("seed", range(4))
def test_after_any_number_of_revisions_every_vector_is_its_items_own(world, running, tmp_path, seed):
    follower = Replica(world, gallery_of(world))
    storm = Storm(world, running, tmp_path / "storm", seed)
    for _ in range(60):
        storm.step()
    while storm.held:
        storm.let_go()
    assert storm.revisions >= 3
    follower.catch_up()
    assert [f for f in check_invariants(world) if not f.ok] == []
    with world.engine.begin() as connection:
        batch_queries.make_due(connection, running.id)
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")
    follower.catch_up()
    assert (follower.snapshot()[1] == Replica(world, gallery_of(world)).snapshot()[1]).all()
    np.testing.assert_array_equal(follower.snapshot()[0], Replica(world, gallery_of(world)).snapshot()[0])


def test_workers_drain_while_the_plan_is_revised_again_and_again(world, running):
    from orchestrator.service.evaluate import evaluate_rollout
    from workers.drain import drain

    failures, revisions = [], []

    def work(owner):
        failures.append(drain(world, running.id, owner=owner).failure)

    workers = [threading.Thread(target=work, args=(owner,)) for owner in ("one", "two")]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        priority = random_priority(running.plan_items, len(revisions))
        revisions.append(write_revision(world, running.id, "flips", priority))
    assert failures == [None, None]
    assert sum(each is not None for each in revisions) >= 2
    evaluate_rollout(world, running.id, {})
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")


def test_a_batch_that_was_claimed_before_a_revision_is_committed_with_the_rows_it_was_read_with(
    world, running
):
    line = open_pipeline(world, running)
    before = claim(world, running.id)
    written = write_revision(
        world, running.id, "flips", np.arange(running.plan_items, dtype=np.float32)[::-1].copy()
    )
    after = claim(world, running.id)
    assert (before.plan_revision, after.plan_revision, written.no) == (0, 1, 1)
    works = []
    for claimed in (before, after):
        line.leases.hold(claimed, time.monotonic())
        works.append(line.prepare(claimed))
    with world.engine.connect() as connection:
        first, second = (plan_rows(connection, running, no) for no in (0, 1))
    np.testing.assert_array_equal(works[0].rows, first[: before.n])
    np.testing.assert_array_equal(works[1].rows, second[before.n : before.n + after.n])
    assert (first[before.n : before.n + after.n] != second[before.n : before.n + after.n]).any()
    for work in works:
        work.encoded = line.encoder.encode(work.prepared)
        line.store_and_commit(work)
    assert (line.result.batches, line.result.refused) == (2, 0)
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")


def test_a_commit_that_names_another_revision_of_the_plan_is_refused(world, running):
    write_revision(world, running.id, "flips", random_priority(running.plan_items, 1))
    claimed = claim(world, running.id)
    with world.engine.begin() as connection:
        stale = replace(claimed, plan_revision=claimed.plan_revision - 1)
        assert batch_queries.commit_batch(connection, stale, crc=1, holes=[]) is None


def test_a_worker_that_knows_of_no_revisions_cannot_claim_what_was_reranked(world, running):
    write_revision(world, running.id, "flips", random_priority(running.plan_items, 1))
    with pytest.raises(IntegrityError, match="batch_claimed_revision"), world.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE batch SET state = 'leased', lease_owner = 'old', lease_until = now() WHERE rollout_id = %s AND "
            "plan_revision = 1",
            (running.id,),
        )


def test_a_revision_moves_what_it_was_told_to_and_tells_of_it(world, running):
    some_batches(world, running.id, 3)
    first = rollouts.reread(world, running.id).committed_items
    with world.engine.connect() as connection:
        old = plan_rows(connection, running, 0)
        [before] = [tuple(r) for r in connection.exec_driver_sql(
            "SELECT sum(batches), sum(committed) FROM band_progress WHERE rollout_id = %s", (running.id,))]  # fmt: skip
    wanted = old[[first + 100, first + 90, first + 20]]
    priority = np.zeros(running.plan_items, np.float32)
    priority[wanted] = (3, 2, 1)
    priority[old[:first]] = 9  # committed: they stay where they are
    written = write_revision(world, running.id, "flips+demand", priority)
    expected = [*wanted, *(row for row in old[first:] if row not in wanted)]
    with world.engine.connect() as connection:
        new = plan_rows(connection, running, 1)
        batches = list(connection.exec_driver_sql(
            "SELECT first_rank, n, plan_revision FROM batch WHERE rollout_id = %s ORDER BY first_rank",
            (running.id,)))  # fmt: skip
        [after] = [tuple(r) for r in connection.exec_driver_sql(
            "SELECT sum(batches), sum(committed) FROM band_progress WHERE rollout_id = %s", (running.id,))]  # fmt: skip
        [status] = read_view(connection, "rollout_status", id=running.id)
        [told] = read_view(connection, "audit", action="rollout.replanned")
    np.testing.assert_array_equal(new, [*old[:first], *expected])
    moved = int((new != old).sum())
    assert (written.no, written.items, written.batches) == (1, moved, sum(r == 1 for _, _, r in batches))
    assert [r for _, _, r in batches] == [
        int((new[f : f + n] != old[f : f + n]).any()) for f, n, _ in batches
    ]
    assert before == after
    assert status["plan_revision"] == 1
    assert (told["before"], told["after"]["by"], told["after"]["items"]) == (
        {"plan_revision": 0}, "flips+demand", moved)  # fmt: skip
    assert write_revision(world, running.id, "flips+demand", priority) is None, "it is in that order already"
    # What has no credit any more goes back to its place in the first plan.
    assert write_revision(world, running.id, "flips", np.zeros_like(priority)).no == 2
    with world.engine.connect() as connection:
        np.testing.assert_array_equal(plan_rows(connection, running, 2), old)
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")


def test_the_uncertainty_of_a_reranked_batch_is_the_mean_of_its_rows(world, running):
    scores = advance.score_rows(world, running)
    write_revision(world, running.id, "flips", random_priority(running.plan_items, 5))
    with world.engine.connect() as connection:
        row_of = plan_rows(connection, running, 1)
        batches = list(connection.exec_driver_sql(
            "SELECT first_rank, n, uncertainty FROM batch WHERE rollout_id = %s ORDER BY first_rank", (running.id,)))  # fmt: skip
    np.testing.assert_allclose(
        [u for _, _, u in batches], [scores[row_of[f : f + n]].mean() for f, n, _ in batches], rtol=1e-4
    )


def test_batches_that_are_held_failed_or_late_and_superseded_ranks_keep_their_rows(world, running, tmp_path):
    held = claim(world, running.id)
    failed = claim(world, running.id)
    poison.batch_failed(world, failed, "on purpose", "test")
    with world.engine.connect() as connection:
        before = plan_rows(connection, running, 0)
    rank = 150
    with world.engine.connect() as connection:
        [(key,)] = connection.exec_driver_sql(
            "SELECT key FROM item WHERE gallery_id = %s AND row = %s", (running.gallery_id, int(before[rank]))
        )
    items.delete_items(world, "pics", [key])
    items.add_items(world, "pics", pictures(tmp_path / "add", ["new/a.png"], 1))
    write_revision(world, running.id, "flips", np.arange(240, dtype=np.float32)[::-1].copy())
    with world.engine.connect() as connection:
        after = plan_rows(connection, running, 1)
        late = rows_of_ranks(connection, running, 240, 1, 0)
    fixed = [
        *range(held.first_rank, held.first_rank + 16),
        *range(failed.first_rank, failed.first_rank + 16),
        rank,
    ]
    np.testing.assert_array_equal(after[fixed], before[fixed])
    free = np.setdiff1d(np.arange(240), fixed)
    np.testing.assert_array_equal(after[free], np.sort(before[free]))
    assert late.tolist() == [240]
    assert [f for f in check_invariants(world) if not f.ok] == []


def test_a_revision_that_dies_before_its_transaction_ends_leaves_the_plan_as_it_was(
    world, running, monkeypatch
):
    before = plan_in_ledger(world, running.id)
    monkeypatch.setattr("orchestrator.service.revisions.reach", lambda point: failpoints._raise())
    with pytest.raises(failpoints.InjectedError):
        write_revision(world, running.id, "flips", random_priority(240, 3))
    np.testing.assert_array_equal(plan_in_ledger(world, running.id), before)
    monkeypatch.undo()
    assert write_revision(world, running.id, "flips", random_priority(240, 4)).no == 1
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")


def test_two_revisions_at_once_take_turns(world, running):
    done = []

    def revise(seed):
        done.append(write_revision(world, running.id, "flips", random_priority(240, seed)).no)

    threads = [threading.Thread(target=revise, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [1, 2, 3, 4]
    assert [f for f in check_invariants(world) if not f.ok] == []


def test_the_doctor_sees_a_plan_that_is_not_what_lies_beside_the_extents(world, running):
    write_revision(world, running.id, "flips", random_priority(240, 3))
    rank_of = plan_in_ledger(world, running.id)
    rank_of[[0, 1]] = rank_of[[1, 0]]
    with world.engine.begin() as connection:
        plan_queries.rewrite_chunks(connection, running.id, {0: plan.to_chunks(rank_of)[0]})
    wrong = [f for f in check_invariants(world) if not f.ok]
    assert {f.invariant for f in wrong} == {"I3"}
    assert "beside the extents" in wrong[0].message


@pytest.mark.parametrize("state", ["finalizable", "cancelled"])
def test_a_plan_that_is_done_is_not_reranked(world, running, state):
    if state == "finalizable":
        platform.work(world, running.id)
    else:
        rollouts.cancel(world, running.id, force=True)
    with pytest.raises(ConflictError, match=state):
        write_revision(world, running.id, "flips", random_priority(240, 3))
