"""Items added, changed and deleted in the middle of a rollout: none missing, none stale, none resurrected."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import ConflictError, NotFoundError, UsageError
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, finish, items, rollouts
from orchestrator.service.invariants import check_invariants
from orchestrator.serving.embedding import encode_uris
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.replica import Replica
from tests.engine import platform
from workers.drain import drain


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def running(world):
    return advance.advance(world, platform.start(world).id)


def pictures(folder, names, seed):
    """New pictures under the given keys; a manifest-like folder."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pattern = rng.integers(0, 255, (platform.EDGE, platform.EDGE)).astype(np.uint8)
        Image.fromarray(pattern).save(folder / name)
    return str(folder)


def some_batches(context, rollout_id, count):
    """Commit `count` batches, as a worker would that is then stopped."""
    import threading

    stop, done = threading.Event(), []

    def committed(seq):
        done.append(seq)
        if len(done) >= count:
            stop.set()

    drain(context, rollout_id, owner="test", stop=stop, committed=committed)


def gallery_of(context):
    with context.engine.connect() as connection:
        return gallery_queries.gallery_by_name(connection, "pics")


def assert_right(context, model_name):
    """Every live item is served by the model with the vector of its content now; deleted ones have none."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        matrix = load_matrix(connection, gallery.id)
        live = [
            r
            for r in gallery_queries.items_of_rows(connection, gallery.id, range(gallery.n_items))
            if gallery_queries.item_by_key(connection, gallery.id, r.key) == r
        ]
        model = model_queries.model_by_name(connection, model_name)
        versions = {
            r["item"]: r["model"] for r in read_view(connection, "embedding_versions", gallery="pics")
        }
    wanted, failed = encode_uris(context.encoder(model), [item.uri for item in live])
    assert not failed
    rows = [item.row for item in live]
    np.testing.assert_allclose(matrix.vectors[rows], wanted, atol=1e-4)
    gone = np.setdiff1d(np.arange(gallery.n_items), rows)
    assert (matrix.version[gone] == 0).all()
    assert not matrix.vectors[gone].any()
    assert versions == {item.key: model_name for item in live}
    assert [f for f in check_invariants(context) if not f.ok] == []


@pytest.mark.parametrize("done_before", [0, 5, 15])
def test_items_added_changed_and_deleted_during_a_rollout_end_up_right(world, running, tmp_path, done_before):
    follower = Replica(world, gallery_of(world))
    if done_before:
        some_batches(world, running.id, done_before)
    follower.catch_up()
    added = items.add_items(world, "pics", pictures(tmp_path / "add", ["new/a.png", "new/b.png"], 1))
    changed = pictures(tmp_path / "change", ["class-01/0.png", "class-20/3.png", "class-39/5.png"], 2)
    items.update_items(world, "pics", changed)
    items.delete_items(world, "pics", ["class-02/0.png", "class-30/1.png", "new/b.png"])
    assert added.rollout_id == running.id
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")
    follower.catch_up()
    served, version, _ = follower.snapshot()
    with world.engine.connect() as connection:
        fresh = load_matrix(connection, follower.gallery.id)
    np.testing.assert_array_equal(served, fresh.vectors)
    np.testing.assert_array_equal(version, fresh.version)
    assert finish.finalize(world, running.id).state == "finalized"


def test_a_change_between_claim_and_commit_is_not_overwritten_by_what_was_read_before(
    world, running, tmp_path
):
    """The worker has decoded the old content; the commit must leave that row out, and the late batch brings the new one."""
    import threading

    from workers.pipeline import Pipeline

    with world.engine.connect() as connection:
        model = model_queries.model_by_name(connection, "kin")
    line = Pipeline(
        world, running, world.encoder(model), "slow", threading.Event(), threading.Event(), float("inf"), lambda seq: None
    )  # fmt: skip
    with world.engine.begin() as connection:
        claim = batch_queries.claim_batch(connection, running.id, "slow", 30)
    line.leases.hold(claim, __import__("time").monotonic())
    work = line.prepare(claim)
    with world.engine.connect() as connection:
        [item] = gallery_queries.items_of_rows(connection, running.gallery_id, work.rows[:1].tolist())
        [other] = gallery_queries.items_of_rows(connection, running.gallery_id, work.rows[1:2].tolist())
    items.update_items(world, "pics", pictures(tmp_path / "change", [item.key], 3))
    items.delete_items(world, "pics", [other.key])
    work.encoded = line.encoder.encode(work.prepared)
    # The late batch is committed by another worker first: what the slow one holds would come after it in the log.
    with world.engine.begin() as connection:
        late = batch_queries.claim_batch(connection, running.id, "quick", 30)
    assert late.first_rank == running.n_items
    line.leases.hold(late, __import__("time").monotonic())
    quick = line.prepare(late)
    quick.encoded = line.encoder.encode(quick.prepared)
    line.store_and_commit(quick)
    line.store_and_commit(work)
    assert (line.result.batches, line.result.refused) == (2, 0)
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")


def test_a_changed_item_that_cannot_be_read_is_no_longer_found_by_its_old_content(world, running, tmp_path):
    (tmp_path / "change" / "class-05").mkdir(parents=True)
    source = tmp_path / "change" / "class-05" / "1.png"
    pictures(tmp_path / "change", ["class-05/1.png"], 4)
    items.update_items(world, "pics", str(tmp_path / "change"))
    source.write_bytes(b"gone")
    row = platform.work(world, running.id)
    assert (row.state, row.quarantined_items) == ("finalizable", 1)
    with world.engine.connect() as connection:
        assert (
            read_view(connection, "embedding_versions", gallery="pics", item="class-05/1.png")[0]["model"]
            is None
        )
    assert [f for f in check_invariants(world) if not f.ok] == []
    pictures(tmp_path / "change", ["class-05/1.png"], 5)
    items.update_items(world, "pics", str(tmp_path / "change"))
    row = platform.work(world, running.id)
    assert (row.state, row.quarantined_items) == ("finalizable", 0)
    assert_right(world, "kin")


@pytest.mark.parametrize("leave", [rollouts.cancel, rollouts.rollback])
def test_what_came_during_a_rollout_that_is_taken_back_is_embedded_by_the_old_model(
    world, running, tmp_path, leave
):
    some_batches(world, running.id, 7)
    items.add_items(world, "pics", pictures(tmp_path / "add", ["new/a.png"], 1))
    items.update_items(world, "pics", pictures(tmp_path / "change", ["class-01/0.png"], 2))
    items.delete_items(world, "pics", ["class-02/0.png"])
    drain(world, running.id, owner="test")
    leave(world, running.id)
    with world.engine.connect() as connection:
        from orchestrator.ledger.queries import rollouts as rollout_queries

        first = rollout_queries.effective_rollouts(connection, running.gallery_id)[-1]
    drain(world, first.id, owner="test")
    assert_right(world, "old")


def test_items_of_a_finalized_gallery_are_embedded_by_the_model_that_serves(world, tmp_path):
    changed = items.add_items(world, "pics", pictures(tmp_path / "add", ["new/a.png", "new/b.png"], 1))
    drain(world, changed.rollout_id, owner="test")
    assert_right(world, "old")
    row = platform.work(world, platform.start(world).id)  # and by the next one, with all others
    assert (row.state, row.n_items) == ("finalizable", 242)
    assert_right(world, "kin")


def test_a_deleted_key_may_come_back_as_another_item(world, running, tmp_path):
    items.delete_items(world, "pics", ["class-02/0.png"])
    items.add_items(world, "pics", pictures(tmp_path / "add", ["class-02/0.png"], 9))
    platform.work(world, running.id)
    assert_right(world, "kin")


def test_a_new_item_is_searchable_before_the_rest_is_re_embedded(world, running, tmp_path):
    from models.datasets import read_item

    source = pictures(tmp_path / "add", ["new/a.png"], 1)
    items.add_items(world, "pics", source)
    some_batches(world, running.id, 1)
    with Replica(world, gallery_of(world)) as replica:
        with world.engine.connect() as connection:
            item = gallery_queries.item_by_key(connection, replica.gallery.id, "new/a.png")
        [answer] = replica.search([read_item(item.uri)], k=1)
    assert answer.hits[0].key == "new/a.png"
    assert answer.coverage_ratio < 0.5  # batches in flight are committed too


def test_a_finalizable_rollout_is_reopened_by_a_new_item(world, running, tmp_path):
    platform.work(world, running.id)
    items.add_items(world, "pics", pictures(tmp_path / "add", ["new/a.png"], 1))
    assert rollouts.reread(world, running.id).state == "backfilling"
    assert platform.work(world, running.id).state == "finalizable"
    assert_right(world, "kin")


def test_deleted_items_leave_searches_at_once(world, running):
    from models.datasets import read_item

    with Replica(world, gallery_of(world)) as replica:
        with world.engine.connect() as connection:
            item = gallery_queries.item_by_key(connection, replica.gallery.id, "class-04/0.png")
        query = read_item(item.uri)
        assert "class-04/0.png" in {h.key for h in replica.search([query], k=3)[0].hits}
        items.delete_items(world, "pics", ["class-04/0.png"])
        replica.catch_up()
        hits = replica.search([query], k=3)[0].hits
        assert "class-04/0.png" not in {h.key for h in hits}
        assert len(hits) == 3


def test_flips_are_counted_on_when_items_come_and_go(world, running, tmp_path):
    from orchestrator.service.evaluate import evaluate_rollout

    kept = {}
    some_batches(world, running.id, 5)
    evaluate_rollout(world, running.id, kept)
    items.add_items(world, "pics", pictures(tmp_path / "add", ["new/a.png"], 1))
    items.delete_items(world, "pics", ["class-02/0.png"])
    drain(world, running.id, owner="test")
    evaluate_rollout(world, running.id, kept)
    with world.engine.connect() as connection:
        stages = read_view(connection, "flip_summary", rollout=running.id)
    assert len(stages) == 1 + 15 + 1
    assert finish.complete(world, running.id).state == "finalizable"
    assert finish.finalize(world, running.id).state == "finalized"


def test_what_cannot_be_changed_is_refused_in_one_sentence(world, tmp_path):
    known = tmp_path / "known"
    shutil.copytree(tmp_path / "pictures" / "class-00", known / "class-00")
    with pytest.raises(UsageError, match="gallery update"):
        items.add_items(world, "pics", str(known))
    with pytest.raises(UsageError, match="gallery add"):
        items.update_items(world, "pics", pictures(tmp_path / "new", ["x/1.png"], 1))
    with pytest.raises(NotFoundError, match="nothing was deleted"):
        items.delete_items(world, "pics", ["class-00/0.png", "nowhere.png"])
    with world.engine.connect() as connection:
        keys = [i.key for i in gallery_queries.items_of_rows(connection, gallery_of(world).id, range(240))]
    with pytest.raises(ConflictError, match="at least one"):
        items.delete_items(world, "pics", keys)
