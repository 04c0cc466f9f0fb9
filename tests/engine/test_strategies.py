"""Each upgrade strategy from start to its end and back, with what is searched compared vector by vector."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from models.datasets import read_item
from orchestrator import failpoints
from orchestrator.errors import ConflictError, NotCertifiedError, UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, certify, finish, guide, items, rollouts
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.invariants import check_invariants
from orchestrator.service.plan_preview import preview
from orchestrator.service.start import StartRequest
from orchestrator.service.stored import stored_by
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.replica import Replica
from tests.engine import platform
from tests.engine.strategies import embed, register_adapter
from tests.faults import oracle

N = platform.CLASSES * platform.PER_CLASS


@pytest.fixture
def world(context, tmp_path):
    """`wide` and `far` are other networks than `old`: only adapters lead there; each pair is certified through its own."""
    platform.embedded_gallery(context, tmp_path)
    platform.register_network(context, tmp_path, "wide", seed=0, moved=0.03, dim=32)
    platform.register_network(context, tmp_path, "far", seed=5, dim=48)
    return context


def certified(context, tmp_path, old, new, *, backward=False):
    """An adapter between a pair, certified although random networks may not deserve it: its name."""
    source, target = (new, old) if backward else (old, new)
    adapter = register_adapter(context, tmp_path, source, target)
    believe(context, old, new, adapter.id)
    return adapter.name


def believe(context, old, new, adapter_id=None, measured=None):
    """A certificate by hand: these tests are about what is served, not about how good it is."""
    with context.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        query_set = gallery_queries.query_sets_of_gallery(connection, gallery.id)[0]
        model_queries.insert_certificate(
            connection,
            query_model_id=model_queries.model_by_name(connection, new).id,
            gallery_model_id=model_queries.model_by_name(connection, old).id,
            adapter_id=adapter_id,
            query_set_id=query_set.id,
            verdict="certified",
            reason="by hand",
            measured=measured or {},
        )


def matrix_of(context):
    with context.engine.connect() as connection:
        return load_matrix(connection, gallery_queries.gallery_by_name(connection, "pics").id)


def lift(context, name, vectors):
    with context.engine.connect() as connection:
        adapter = model_queries.adapter_by_name(connection, name)
    return context.adapter(adapter).transform(vectors)[0]


def assert_searches(context, model, expected, query_adapter=None, follower=None):
    """Replicas, fresh and following, answer for 3 items as a plain product over the expected vectors does."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        encoder = context.encoder(model_queries.model_by_name(connection, model))
        uris = [i.uri for i in gallery_queries.items_of_rows(connection, gallery.id, [0, 17, 200])]
    contents = [read_item(uri) for uri in uris]
    queries = encoder.encode([encoder.preprocess(each) for each in contents])
    if query_adapter is not None:
        queries = lift(context, query_adapter, queries)
    scores = queries @ expected.T
    replicas = [Replica(context, gallery)]
    if follower is not None:
        follower.catch_up()
        replicas.append(follower)
    for replica in replicas:
        for wanted, answer in zip(scores, replica.search(contents, k=5), strict=True):
            assert answer.model == model
            np.testing.assert_allclose([h.score for h in answer.hits], np.sort(wanted)[::-1][:5], atol=1e-5)
            np.testing.assert_allclose(
                wanted[[h.row for h in answer.hits]], [h.score for h in answer.hits], atol=1e-5
            )


def follow(context):
    with context.engine.connect() as connection:
        return Replica(context, gallery_queries.gallery_by_name(connection, "pics"))


def assert_sound(context, rollout_id):
    assert [f for f in check_invariants(context) if not f.ok] == []
    truth = oracle.glance(context, rollout_id)
    with context.engine.connect() as connection:
        oracle._check_flips(context, connection, rollouts.reread(context, rollout_id), truth)
    assert truth.sound, truth


def finalized(context, row):
    """Count its flips and finalize it."""
    evaluate_rollout(context, row.id, {})
    assert finish.finalize(context, row.id).state == "finalized"
    assert_sound(context, row.id)


def status(context, rollout_id):
    with context.engine.connect() as connection:
        return read_view(connection, "rollout_status", id=rollout_id)[0]


def versions(context):
    with context.engine.connect() as connection:
        rows = read_view(connection, "embedding_versions", limit=10_000, gallery="pics")
    return {(r["model"], r["adapter"]) for r in rows}


def close_window(context, rollout_id):
    with context.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE rollout SET finished_at = finished_at - interval '30 days' "
            f"WHERE gallery_id = (SELECT gallery_id FROM rollout WHERE id = {rollout_id}) AND finished_at IS NOT NULL"
        )


def test_without_a_name_the_adapter_says_the_strategy(world, tmp_path):
    forward = certified(world, tmp_path, "old", "far")
    backward = certified(world, tmp_path, "old", "far", backward=True)
    usual = (
        (None, "kin", "reembed"),
        (forward, "far", "transform-then-reembed"),
        (backward, "far", "query-adapter"),
    )
    for adapter, to, name in usual:
        assert preview(world, StartRequest("pics", to, adapter)).strategy == name
        row = platform.start(world, to, adapter=adapter)
        assert status(world, row.id)["strategy"] == row.strategy == name
        rollouts.rollback(world, row.id)


def test_reembed_searches_old_vectors_and_then_new_ones(world):
    follower = follow(world)
    row = platform.start(world, strategy="reembed")
    assert_searches(world, "kin", embed(world, "old"), follower=follower)
    assert platform.work(world, row.id).state == "finalizable"
    assert_searches(world, "kin", embed(world, "kin"), follower=follower)
    rollouts.rollback(world, row.id)
    assert_searches(world, "old", embed(world, "old"), follower=follower)


def test_transform_then_reembed_searches_lifted_vectors_and_then_new_ones(world, tmp_path):
    adapter, follower = certified(world, tmp_path, "old", "far"), follow(world)
    row = platform.start(world, "far", adapter=adapter)
    assert_searches(world, "far", lift(world, adapter, embed(world, "old")), follower=follower)
    assert platform.work(world, row.id).state == "finalizable"
    assert_searches(world, "far", embed(world, "far"), follower=follower)
    rollouts.rollback(world, row.id)
    assert_searches(world, "old", embed(world, "old"), follower=follower)


def test_transform_reads_no_item_and_is_finalizable_at_once(world, tmp_path):
    adapter, follower, old = certified(world, tmp_path, "old", "far"), follow(world), embed(world, "old")
    queries = [tmp_path / "pictures"]
    shutil.move(queries[0], tmp_path / "gone")
    row = platform.start(world, "far", adapter=adapter, strategy="transform")
    assert (row.state, row.n_batches, row.n_items) == ("finalizable", 0, 0)
    shutil.move(tmp_path / "gone", queries[0])  # for the searches of this test only
    assert_searches(world, "far", lift(world, adapter, old), follower=follower)
    assert versions(world) == {("old", adapter)}
    assert status(world, row.id)["pending"] == 0
    finalized(world, row)
    rollouts.rollback(world, row.id)
    assert_searches(world, "old", old, follower=follower)
    assert_sound(world, row.id)


def test_transforms_chain_and_each_can_be_taken_back(world, tmp_path):
    first, follower = certified(world, tmp_path, "old", "far"), follow(world)
    finalized(world, platform.start(world, "far", adapter=first, strategy="transform"))
    second = certified(world, tmp_path, "far", "wide")
    row = platform.start(world, "wide", adapter=second, strategy="transform")
    once = lift(world, first, embed(world, "old"))
    assert_searches(world, "wide", lift(world, second, once), follower=follower)
    finalized(world, row)
    rollouts.rollback(world, row.id)
    assert_searches(world, "far", once, follower=follower)
    again = platform.start(world, "wide", adapter=second, strategy="transform")
    finalized(world, again)
    close_window(world, again.id)
    with pytest.raises(ConflictError, match="window"):
        rollouts.rollback(world, again.id)
    given_back = finish.reclaim(world, "pics")
    assert row.id in given_back.rollouts
    assert (
        len(given_back.rollouts) == 2
    )  # the one rolled back and the table in between, not what `old` once made
    assert_searches(world, "wide", lift(world, second, once), follower=follower)
    assert [f for f in check_invariants(world) if not f.ok] == []
    assert (
        evaluate_rollout(world, again.id, {}) == 0
    )  # the old system is gone with the table: nothing to compare with


def test_after_a_transform_every_item_can_be_embedded_anew(world, tmp_path):
    first, follower = certified(world, tmp_path, "old", "far"), follow(world)
    finalized(world, platform.start(world, "far", adapter=first, strategy="transform"))
    second = certified(world, tmp_path, "far", "wide")
    row = platform.start(world, "wide", adapter=second)
    assert platform.work(world, row.id).state == "finalizable"
    finalized(world, row)
    assert_searches(world, "wide", embed(world, "wide"), follower=follower)
    close_window(world, row.id)
    assert len(finish.reclaim(world, "pics").rollouts) == 2
    assert_searches(world, "wide", embed(world, "wide"), follower=follower)


def test_a_certificate_after_a_transform_is_measured_on_what_is_stored(world, tmp_path):
    first = certified(world, tmp_path, "old", "far")
    finalized(world, platform.start(world, "far", adapter=first, strategy="transform"))
    with world.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        matrix, own = stored_by(connection, gallery, model_queries.model_by_name(connection, "far"))
    assert own.all()
    np.testing.assert_allclose(matrix.vectors, lift(world, first, embed(world, "old")), atol=1e-6)


def test_items_added_changed_and_deleted_after_a_transform(world, tmp_path):
    adapter, follower = certified(world, tmp_path, "old", "far"), follow(world)
    row = platform.start(world, "far", adapter=adapter, strategy="transform")
    finalized(world, row)
    old = embed(world, "old")
    more = platform.draw_pictures(tmp_path / "more", 1, seed=3)
    for picture in list(more.glob("*/0.png")):
        picture.rename(picture.with_name("new.png"))
    assert items.add_items(world, "pics", str(more)).rollout_id == row.id
    items.delete_items(world, "pics", ["class-00/0.png"])
    platform.work(world, row.id)
    expected = np.concatenate([lift(world, adapter, old), embed(world, "far")[N:]])
    expected[0] = 0
    np.testing.assert_allclose(matrix_of(world).vectors, expected, atol=1e-5)
    follower.catch_up()
    np.testing.assert_array_equal(follower.snapshot()[0], matrix_of(world).vectors)
    assert_sound(world, row.id)
    rollouts.rollback(world, row.id)
    platform.work(world, 1)
    expected = embed(world, "old")
    expected[0] = 0
    np.testing.assert_allclose(matrix_of(world).vectors, expected, atol=1e-5)


def test_query_adapter_maps_queries_and_leaves_every_vector(world, tmp_path):
    adapter, follower = certified(world, tmp_path, "old", "far", backward=True), follow(world)
    row = platform.start(world, "far", adapter=adapter)
    assert (row.state, row.strategy) == ("finalizable", "query-adapter")
    assert_searches(world, "far", embed(world, "old"), adapter, follower)
    assert versions(world) == {("old", None)}
    finalized(world, row)
    assert_searches(world, "far", embed(world, "old"), adapter, follower)
    rollouts.rollback(world, row.id)
    assert_searches(world, "old", embed(world, "old"), follower=follower)
    assert_sound(world, row.id)


def test_a_query_adapter_can_be_cancelled_instead(world, tmp_path):
    adapter, follower = certified(world, tmp_path, "old", "far", backward=True), follow(world)
    row = platform.start(world, "far", adapter=adapter)
    assert rollouts.cancel(world, row.id).state == "cancelled"
    assert_searches(world, "old", embed(world, "old"), follower=follower)
    assert_sound(world, row.id)


def test_items_under_a_query_adapter_are_embedded_by_the_stored_model(world, tmp_path):
    adapter, follower = certified(world, tmp_path, "old", "far", backward=True), follow(world)
    row = platform.start(world, "far", adapter=adapter)
    evaluate_rollout(world, row.id, {})
    more = platform.draw_pictures(tmp_path / "more", 1, seed=3)
    for picture in list(more.glob("*/0.png")):
        picture.rename(picture.with_name("new.png"))
    told = items.add_items(world, "pics", str(more)).rollout_id
    assert told == 1
    platform.work(world, told)
    assert evaluate_rollout(world, row.id, {}) > 0
    with world.engine.connect() as connection:
        counted = read_view(connection, "flip_summary", rollout=row.id)
    assert (
        len(counted) == 1 + platform.CLASSES // 16 + 1
    )  # the deployment, and the late batches of the rollout before
    assert_searches(world, "far", embed(world, "old"), adapter, follower)
    assert_sound(world, row.id)
    rollouts.rollback(world, row.id)
    assert_searches(world, "old", embed(world, "old"), follower=follower)


def test_after_a_query_adapter_the_gallery_can_be_embedded_by_the_same_model(world, tmp_path):
    backward, follower = certified(world, tmp_path, "old", "far", backward=True), follow(world)
    served = platform.start(world, "far", adapter=backward)
    finalized(world, served)
    forward = certified(world, tmp_path, "old", "far")
    row = platform.start(world, "far", adapter=forward)
    assert_searches(world, "far", lift(world, forward, embed(world, "old")), follower=follower)
    assert platform.work(world, row.id).state == "finalizable"
    finalized(world, row)
    assert_searches(world, "far", embed(world, "far"), follower=follower)
    rollouts.rollback(world, row.id)
    assert_searches(world, "far", embed(world, "old"), backward, follower)
    assert_sound(world, row.id)
    with pytest.raises(NotCertifiedError, match="never measured"):
        platform.start(world, "wide")  # the stored vectors are still old's


def test_nothing_under_a_query_adapter_is_reclaimed(world, tmp_path):
    lifting = certified(world, tmp_path, "old", "far")
    finalized(world, platform.start(world, "far", adapter=lifting, strategy="transform"))
    adapter = certified(world, tmp_path, "far", "wide", backward=True)
    finalized(world, platform.start(world, "wide", adapter=adapter))
    close_window(world, 1)
    assert finish.reclaim(world, "pics").rollouts == ()
    assert_searches(world, "wide", lift(world, lifting, embed(world, "old")), adapter)


def test_superseding_asks_no_certificate_for_a_query_adapters_model_whose_vectors_nobody_holds(
    world, tmp_path
):
    finalized(
        world, platform.start(world, "far", adapter=certified(world, tmp_path, "old", "far", backward=True))
    )
    forward = certified(world, tmp_path, "old", "wide")
    row = advance.advance(world, platform.start(world, "wide", adapter=forward).id)
    platform.register_network(world, tmp_path, "wider", seed=0, moved=0.05, dim=32)
    believe(world, "wide", "wider")
    with pytest.raises(NotCertifiedError, match=r"the stored embeddings of 'old'.*--adapter old-to-wide"):
        platform.start(world, "wider", supersede=True)
    with world.engine.connect() as connection:
        adapter_id = model_queries.adapter_by_name(connection, forward).id
    believe(world, "old", "wider", adapter_id)
    following = advance.advance(world, platform.start(world, "wider", supersede=True).id)
    assert rollouts.reread(world, row.id).state == "superseded"
    assert_searches(world, "wider", lift(world, forward, embed(world, "old")))
    assert platform.work(world, following.id).state == "finalizable"
    assert_searches(world, "wider", embed(world, "wider"))


def test_a_query_adapters_certificate_has_one_place_on_its_curve(world, tmp_path):
    register_adapter(world, tmp_path, "far", "old")
    request = certify.CertifyRequest("old", "far", "pics", adapter="far-to-old", minimum_queries=20)
    measured = certify.certify(world, request).measured
    assert measured["adapter_maps"] == "queries"
    assert {point["value"] for point in measured["curve"]} == {measured["new_old"]}


@pytest.mark.parametrize(
    ("strategy", "direction", "match"),
    [
        ("reembed", "forward", "takes no adapter"),
        ("transform", None, "needs an adapter from the stored"),
        ("transform", "backward", "needs an adapter from the stored"),
        ("query-adapter", "forward", "needs an adapter from the new"),
        ("transform-then-reembed", None, "needs an adapter"),
        ("sideways", None, "there is no strategy"),
    ],
)
def test_impossible_combinations_are_one_clear_error(world, tmp_path, strategy, direction, match):
    adapter = None
    if direction is not None:
        adapter = certified(world, tmp_path, "old", "far", backward=direction == "backward")
    for call in (preview, lambda c, r: platform.starting.start(c, r)):
        with pytest.raises(UsageError, match=match):
            call(world, StartRequest("pics", "far", adapter, strategy))


def test_what_a_query_adapter_leaves_nothing_to_do_for_is_refused(world, tmp_path):
    adapter = certified(world, tmp_path, "old", "far", backward=True)
    finalized(world, platform.start(world, "far", adapter=adapter))
    with pytest.raises(ConflictError, match="brings nothing new"):
        platform.start(world, "far", adapter=adapter)
    with pytest.raises(ConflictError, match="still holds the embeddings"):
        platform.start(world, "old")


def test_a_process_that_dies_between_lifting_and_the_switch_is_gone_on_for(world, tmp_path):
    from orchestrator.service import advance

    adapter = certified(world, tmp_path, "old", "far")
    failpoints.arm("in_state_change=raise:1")
    try:
        with pytest.raises(failpoints.InjectedError):
            platform.start(world, "far", adapter=adapter, strategy="transform")
    finally:
        failpoints._armed.clear()
    left = rollouts.reread(world, 2)
    assert (left.state, left.adapted_uri is not None) == ("planned", True)
    assert_searches(world, "old", embed(world, "old"))
    assert advance.advance(world, left.id).state == "finalizable"
    assert_searches(world, "far", lift(world, adapter, embed(world, "old")))


def test_the_next_command_leads_to_the_end_of_a_strategy(world, tmp_path):
    adapter = certified(world, tmp_path, "old", "far", backward=True)
    assert guide.next_command(world, "pics") == f"rollout start pics --to far --adapter {adapter}"
    row = platform.start(world, "far", adapter=adapter)
    assert guide.next_command(world, "pics") == f"rollout finalize {row.id}"
    finalized(world, row)
    assert guide.next_command(world, "pics") == "model adapt old far --gallery pics"
