"""Three versions at once: a newer rollout takes the place of one that still runs; every mix needs its certificate."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from orchestrator.errors import ConflictError, NotCertifiedError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, finish, rollouts
from orchestrator.service.invariants import check_invariants
from orchestrator.service.start import StartRequest, _check_supersede
from orchestrator.serving.embedding import encode_uris
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.replica import Replica
from tests.engine import platform
from workers.drain import drain


@pytest.fixture
def half_way(context, tmp_path):
    """`kin` has re-embedded 6 of 15 batches of `old`; `kin3` is registered."""
    platform.embedded_gallery(context, tmp_path)
    platform.register_network(context, tmp_path, "kin3", seed=0, moved=0.03)
    row = advance.advance(context, platform.start(context).id)
    work_some(context, row.id, 6)
    return rollouts.reread(context, row.id)


def work_some(context, rollout_id, count):
    stop, done = threading.Event(), []

    def committed(seq):
        done.append(seq)
        if len(done) >= count:
            stop.set()

    drain(context, rollout_id, owner="test", stop=stop, committed=committed)


def coverage(context):
    with context.engine.connect() as connection:
        return {r["model"]: r["items"] for r in read_view(connection, "coverage_by_model")}


def versions(context):
    with context.engine.connect() as connection:
        rows = read_view(connection, "embedding_versions", gallery="pics")
    names = [r["model"] for r in rows]
    return {name: names.count(name) for name in set(names)}


def assert_every_vector_is_its_versions(context):
    """Each row's vector is what the model of its version makes of the item; coverage by SQL is the count of versions."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        matrix = load_matrix(connection, gallery.id)
        items = gallery_queries.items_of_rows(connection, gallery.id, range(gallery.n_items))
        names = {r["item"]: r["model"] for r in read_view(connection, "embedding_versions", gallery="pics")}
        models = {n: model_queries.model_by_name(connection, n) for n in set(names.values())}
    for name, model in models.items():
        mine = [i for i in items if names[i.key] == name]
        wanted, _ = encode_uris(context.encoder(model), [i.uri for i in mine])
        np.testing.assert_allclose(matrix.vectors[[i.row for i in mine]], wanted, atol=1e-4)
    assert coverage(context) == versions(context)
    assert [f for f in check_invariants(context) if not f.ok] == []


def test_without_supersede_a_running_rollout_refuses_the_next(context, half_way):
    with pytest.raises(ConflictError, match=f"rollout {half_way.id}"):
        platform.start(context, "kin3")


@pytest.mark.parametrize("certified", [(), ("kin",), ("old",)])
def test_every_mix_must_be_certified(context, half_way, certified):
    for old in certified:
        assert platform.certify_pair(context, old, "kin3") == "certified"
    with pytest.raises(NotCertifiedError, match="never measured"):
        platform.start(context, "kin3", supersede=True)
    assert rollouts.reread(context, half_way.id).state == "backfilling"


@pytest.fixture
def three(context, half_way):
    for old in ("old", "kin"):
        assert platform.certify_pair(context, old, "kin3") == "certified"
    row = advance.advance(context, platform.start(context, "kin3", supersede=True, order="row").id)
    return half_way, row


def test_rows_of_three_versions_are_served_and_counted(context, half_way):
    follower = Replica(context, gallery(context))
    for old in ("old", "kin"):
        platform.certify_pair(context, old, "kin3")
    row = advance.advance(context, platform.start(context, "kin3", supersede=True, order="row").id)
    assert rollouts.reread(context, half_way.id).state == "superseded"
    work_some(context, row.id, 5)
    assert set(versions(context)) == {"old", "kin", "kin3"}
    assert_every_vector_is_its_versions(context)
    follower.catch_up()
    assert follower.model.name == "kin3"
    served, version, _ = follower.snapshot()
    with context.engine.connect() as connection:
        fresh = load_matrix(connection, follower.gallery.id)
    np.testing.assert_array_equal(served, fresh.vectors)
    np.testing.assert_array_equal(version, fresh.version)


def gallery(context):
    with context.engine.connect() as connection:
        return gallery_queries.gallery_by_name(connection, "pics")


def test_the_newest_rollout_ends_with_the_whole_gallery(context, three):
    row = platform.work(context, three[1].id)
    assert row.state == "finalizable"
    assert finish.finalize(context, row.id).state == "finalized"
    assert coverage(context) == {"kin3": 240}
    assert_every_vector_is_its_versions(context)


def test_what_was_held_of_the_superseded_rollout_is_not_committed(context, half_way):
    from orchestrator.ledger.queries import batches as batch_queries

    with context.engine.begin() as connection:
        held = batch_queries.claim_batch(connection, half_way.id, "slow", 30)
    for old in ("old", "kin"):
        platform.certify_pair(context, old, "kin3")
    platform.start(context, "kin3", supersede=True)
    with context.engine.begin() as connection:
        assert batch_queries.commit_batch(connection, held, crc=0, holes=[]) is None
        assert batch_queries.claim_batch(connection, half_way.id, "slow", 30) is None


def test_taking_the_newest_back_reinstates_the_one_before_paused_and_it_can_go_on(context, three):
    half_way, row = three
    before = versions(context)
    assert set(before) == {"old", "kin"}
    work_some(context, row.id, 4)
    assert rollouts.rollback(context, row.id).state == "rolled_back"
    again = rollouts.reread(context, half_way.id)
    assert (again.state, again.finished_at) == ("paused", None)
    assert versions(context) == before
    assert_every_vector_is_its_versions(context)
    rollouts.resume(context, half_way.id)
    assert platform.work(context, half_way.id).state == "finalizable"
    assert versions(context) == {"kin": 240}


def test_an_adapter_cannot_lift_a_mixture(context, half_way):
    request = StartRequest("pics", "kin3", adapter="a", supersede=True)
    with context.engine.connect() as connection, pytest.raises(ConflictError, match="several models"):
        _check_supersede(connection, gallery(context), half_way, request)


def test_a_finalizable_rollout_is_finalized_not_superseded(context, half_way):
    platform.work(context, half_way.id)
    for old in ("old", "kin"):
        platform.certify_pair(context, old, "kin3")
    with pytest.raises(ConflictError, match="finalize it"):
        platform.start(context, "kin3", supersede=True)
