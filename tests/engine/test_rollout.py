"""A rollout from start to finalize and back, on real PostgreSQL and Valkey, with this process as the worker."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from orchestrator.errors import ConflictError, NotCertifiedError, NotFoundError, UnreachableError
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, embed, finish, galleries, rollouts
from orchestrator.service import start as starting
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.replica import Replica
from tests.engine import platform


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


def view(context, name, **filters):
    with context.engine.connect() as connection:
        return read_view(connection, name, **filters)


def vectors(context):
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        return load_matrix(connection, gallery.id)


def replica_of(context):
    with context.engine.connect() as connection:
        return Replica(context, gallery_queries.gallery_by_name(connection, "pics"))


def test_the_first_embedding_serves_and_every_item_has_a_version(world):
    rows = view(world, "embedding_versions", gallery="pics")
    assert len(rows) == platform.CLASSES * platform.PER_CLASS
    assert {row["model"] for row in rows} == {"old"}
    assert view(world, "coverage_by_model") == [
        {"gallery": "pics", "model": "old", "items": len(rows), "ratio": 1.0}
    ]


def test_start_serves_the_new_model_at_once_and_the_backfill_ends_finalizable(world):
    row = platform.start(world)
    assert row.state == "deployed"
    assert view(world, "serving_history")[-1]["model"] == "kin"
    assert platform.work(world, row.id).state == "finalizable"
    assert {r["model"] for r in view(world, "embedding_versions", gallery="pics")} == {"kin"}
    assert finish.finalize(world, row.id).state == "finalized"
    assert finish.finalize(world, row.id).state == "finalized"  # done already


def test_the_item_version_in_sql_is_the_vector_that_is_served_at_every_batch(world):
    row = advance.advance(world, platform.start(world).id)
    from workers.drain import drain

    with world.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
    seen = []

    def compare(seq: int) -> None:
        with world.engine.connect() as connection:
            versions = {
                r["item"]: r["rollout"]
                for r in read_view(connection, "embedding_versions", limit=10_000, gallery="pics")
            }
            matrix = load_matrix(connection, gallery.id)
            items = gallery_queries.items_of_rows(connection, gallery.id, list(range(gallery.n_items)))
        assert {item.key: int(matrix.version[item.row]) for item in items} == versions
        seen.append(int((matrix.version == row.id).sum()))

    drain(world, row.id, owner="test", committed=compare)
    assert seen[-1] == gallery.n_items
    assert len(set(seen)) > 5


def test_a_replica_that_follows_the_log_holds_what_a_fresh_one_loads(world):
    follower = replica_of(world)
    row = platform.start(world)
    assert follower.catch_up() > 0
    assert follower.model.name == "kin"
    platform.work(world, row.id)
    follower.catch_up()
    fresh = replica_of(world)
    assert follower.seq == fresh.seq
    np.testing.assert_array_equal(follower._served.index.vectors(), fresh._served.index.vectors())
    np.testing.assert_array_equal(follower._served.version, fresh._served.version)


def test_the_stored_flips_are_those_of_a_full_search_at_every_stage(world):
    from orchestrator.core.flips import FlipCounts
    from orchestrator.core.metrics import top_k
    from orchestrator.serving.embedding import encode_uris, load_query_set
    from orchestrator.serving.matrix import load_matrix as load

    row = platform.start(world)
    platform.work(world, row.id)
    with world.engine.connect() as connection:
        query_set = load_query_set(
            connection, gallery_queries.query_sets_of_gallery(connection, row.gallery_id)[0]
        )
        old, new = (model_queries.model_by_name(connection, name) for name in ("old", "kin"))
        before = load(connection, row.gallery_id, before=row.id).vectors
        stages = {seq: load(connection, row.gallery_id, up_to=seq).vectors
                  for seq in range(1, log_queries.last_seq(connection, row.gallery_id) + 1)}  # fmt: skip
    old_q, new_q = (encode_uris(world.encoder(m), query_set.uris)[0] for m in (old, new))
    right_before = query_set.relevance.hits(top_k(old_q, before, 1)[1])
    stored = view(world, "flip_summary", rollout=row.id)
    assert len(stored) == row.n_items // row.batch_size + 1  # the deployment and every batch
    for each in stored:
        right_now = query_set.relevance.hits(top_k(new_q, stages[each["seq"]], 1)[1])
        assert FlipCounts.of(right_before, right_now) == FlipCounts(
            each["both_right"], each["negative_flips"], each["positive_flips"], each["both_wrong"]
        )


@pytest.fixture
def flipping(world, tmp_path):
    """A rollout whose model moved far enough to lose answers and win them back; its certificate is made by hand."""
    far = platform.register_network(world, tmp_path, "far", seed=0, moved=0.35)
    with world.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        old = model_queries.model_by_name(connection, "old")
        model_queries.insert_certificate(
            connection, query_model_id=far.id, gallery_model_id=old.id, adapter_id=None, verdict="certified", reason="by hand",
            query_set_id=gallery_queries.query_sets_of_gallery(connection, gallery.id)[0].id, measured={},
        )  # fmt: skip
    row = platform.start(world, "far")
    platform.work(world, row.id)
    return row


def test_open_flips_are_the_queries_that_are_wrong_now_and_were_right(world, flipping):
    stages = view(world, "flip_summary", rollout=flipping.id)
    flips = view(world, "flip_items", rollout=flipping.id, reference="old_system")
    healed = [f for f in flips if f["healed_seq"] is not None]
    assert healed, "nothing flipped back: the test would show nothing"
    for stage in stages:
        for kind in ("negative", "positive"):
            standing = [
                f for f in flips
                if f["kind"] == kind and f["opened_seq"] <= stage["seq"] and (f["healed_seq"] or 2**62) > stage["seq"]
            ]  # fmt: skip
            assert len(standing) == stage[f"{kind}_flips"]
            assert len({f["query"] for f in standing}) == len(standing)


def test_flips_against_the_previous_stage_add_up_to_the_change_of_right_answers(world, flipping):
    stages = view(world, "flip_summary", rollout=flipping.id)
    right = [s["both_right"] + s["positive_flips"] for s in stages]
    steps = [s["previous_positive_flips"] - s["previous_negative_flips"] for s in stages]
    assert [b - a for a, b in itertools.pairwise(right)] == steps[1:]
    assert any(s["previous_negative_flips"] for s in stages)


def test_an_evaluator_that_died_goes_on_where_it_was(world):
    from orchestrator.serving.evaluator import Evaluator
    from workers.drain import drain

    row = advance.advance(world, platform.start(world).id)
    first = Evaluator(world, row.id)
    drain(world, row.id, owner="test", committed=lambda seq: first.catch_up() if seq < 25 else None)
    done = len(view(world, "flip_summary", rollout=row.id))
    Evaluator(world, row.id).catch_up()  # the first one is gone, its memory with it
    resumed = view(world, "flip_summary", rollout=row.id)
    assert done < len(resumed)
    whole = Evaluator(world, row.id)
    assert whole.catch_up() == len(resumed) - 1
    assert view(world, "flip_summary", rollout=row.id) == resumed


def test_an_evaluator_that_could_not_write_is_not_asked_again(world, flipping, monkeypatch):
    from orchestrator.service.evaluate import evaluate_rollout
    from orchestrator.serving import evaluator

    written = view(world, "flip_summary", rollout=flipping.id)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM flip")
        connection.exec_driver_sql("DELETE FROM evaluation")
    real, calls = evaluator.Evaluator._record, []

    def fail_once(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise UnreachableError("the database went away")
        real(self, *arguments)

    monkeypatch.setattr(evaluator.Evaluator, "_record", fail_once)
    kept = {}
    with pytest.raises(UnreachableError):
        evaluate_rollout(world, flipping.id, kept)
    evaluate_rollout(world, flipping.id, kept)
    again = view(world, "flip_summary", rollout=flipping.id)
    assert [{**row, "at": None} for row in again] == [{**row, "at": None} for row in written]


def test_the_writer_reads_on_when_the_ledger_is_away_while_batches_are_given_back(world, monkeypatch):
    from workers import pipeline as lines

    row = advance.advance(world, platform.start(world).id)

    def away(*arguments, **more):
        raise UnreachableError("the database went away")

    with world.engine.connect() as connection:
        model = model_queries.model_by_name(connection, "kin")
    forever = float("inf")
    pipeline = lines.Pipeline(
        world,
        row,
        world.encoder(model),
        "test",
        threading.Event(),
        threading.Event(),
        forever,
        lambda seq: None,
    )
    with world.engine.begin() as connection:
        claim = batch_queries.claim_batch(connection, row.id, "test", 30)
    pipeline.encoded.put(pipeline.prepare(claim))
    pipeline.over.set()
    monkeypatch.setattr(lines.batch_queries, "give_back", away)
    writer = threading.Thread(target=pipeline.write, daemon=True)
    writer.start()
    pipeline.encoded.put(
        None, timeout=30
    )  # a writer that died would leave the encoder waiting here, or for its end
    writer.join(timeout=30)
    assert pipeline.encoded.empty(), "nobody reads what the encoder hands over"
    assert isinstance(pipeline.result.failure, UnreachableError)


def test_a_pair_that_was_never_measured_is_refused(world, tmp_path):
    platform.register_network(world, tmp_path, "kin2", seed=0, moved=0.03)
    with pytest.raises(NotCertifiedError, match="never measured"):
        platform.start(world, "kin2")


def test_a_same_dimension_stranger_is_refused_by_its_certificate(world, tmp_path):
    platform.register_network(world, tmp_path, "stranger", seed=5)
    assert platform.certify_pair(world, "old", "stranger") == "refused"
    with pytest.raises(NotCertifiedError, match="refused"):
        platform.start(world, "stranger")
    assert view(world, "serving_history")[-1]["model"] == "old"


def test_a_model_of_another_dim_is_refused_without_an_adapter(world, tmp_path):
    platform.register_network(world, tmp_path, "wide", seed=0, dim=48)
    with pytest.raises(NotCertifiedError, match="48 dimensions"):
        platform.start(world, "wide")


def test_a_second_start_on_the_same_gallery_is_refused_and_names_the_first(world):
    first = platform.start(world)
    with pytest.raises(ConflictError, match=f"rollout {first.id}"):
        platform.start(world)


def test_pause_refuses_the_commit_of_what_was_claimed_before(world):
    row = advance.advance(world, platform.start(world).id)
    with world.engine.begin() as connection:
        claim = batch_queries.claim_batch(connection, row.id, "slow", 30)
    rollouts.pause(world, row.id, "maintenance")
    with world.engine.begin() as connection:
        late = batch_queries.commit_batch(
            connection, claim, crc=0, holes=[], decode_s=0, encode_s=0, store_s=0
        )
        again = batch_queries.claim_batch(connection, row.id, "slow", 30)
    assert (late, again) == (None, None)
    status = view(world, "rollout_status", id=row.id)[0]
    assert (status["state"], status["reason"], status["committed"]) == ("paused", "maintenance", 0)
    assert (status["sub_state"], status["leased"]) == ("pausing", row.batch_size)  # asked, not acknowledged
    with world.engine.begin() as connection:
        assert batch_queries.give_back(connection, claim)
    assert view(world, "rollout_status", id=row.id)[0]["sub_state"] is None
    rollouts.resume(world, row.id)
    assert platform.work(world, row.id).state == "finalizable"


def test_a_commit_of_an_older_generation_is_refused_though_its_lease_stands(world):
    row = advance.advance(world, platform.start(world).id)
    with world.engine.begin() as connection:
        claim = batch_queries.claim_batch(connection, row.id, "slow", 30)
        connection.exec_driver_sql("UPDATE rollout SET generation = generation + 1")
    with world.engine.begin() as connection:
        late = batch_queries.commit_batch(
            connection, claim, crc=0, holes=[], decode_s=0, encode_s=0, store_s=0
        )
    assert late is None
    status = view(world, "rollout_status", id=row.id)[0]
    assert (status["committed"], status["leased"]) == (0, row.batch_size)


def test_a_stale_worker_cannot_commit_after_its_lease_was_taken_over(world):
    row = advance.advance(world, platform.start(world).id)
    with world.engine.begin() as connection:
        stale = batch_queries.claim_batch(connection, row.id, "frozen", 0.0)
    with world.engine.begin() as connection:
        fresh = batch_queries.claim_batch(connection, row.id, "other", 30)
    assert (fresh.first_rank, fresh.fence, fresh.attempt) == (stale.first_rank, stale.fence + 1, 2)
    done = {"crc": 1, "holes": [], "decode_s": 0, "encode_s": 0, "store_s": 0}
    with world.engine.begin() as connection:
        assert batch_queries.commit_batch(connection, stale, **done) is None
    with world.engine.begin() as connection:
        assert batch_queries.commit_batch(connection, fresh, **done) is not None
        assert batch_queries.reread_commit(connection, stale) is None


@pytest.mark.parametrize("verb", [rollouts.cancel, rollouts.rollback])
def test_cancel_and_rollback_bring_back_the_old_model_and_the_old_vectors(world, verb):
    before = vectors(world)
    follower = replica_of(world)
    row = advance.advance(world, platform.start(world).id)
    from workers.drain import drain

    drain(world, row.id, owner="test")
    follower.catch_up()
    verb(world, row.id)
    after = vectors(world)
    np.testing.assert_array_equal(before.vectors, after.vectors)
    np.testing.assert_array_equal(before.version, after.version)
    follower.catch_up()
    assert follower.model.name == "old"
    np.testing.assert_array_equal(follower._served.index.vectors(), before.vectors)
    history = view(world, "serving_history")
    assert [h["model"] for h in history] == ["old", "kin", "old"]
    assert all(a["valid_to"] == b["valid_from"] for a, b in itertools.pairwise(history))


def test_rollback_is_possible_after_finalize_and_a_new_rollout_can_start(world):
    row = platform.start(world)
    platform.work(world, row.id)
    finish.finalize(world, row.id)
    assert rollouts.rollback(world, row.id, "users complained").state == "rolled_back"
    assert rollouts.rollback(world, row.id).state == "rolled_back"
    again = platform.start(world)
    assert platform.work(world, again.id).state == "finalizable"


def test_an_illegal_verb_names_the_state_and_what_is_possible(world):
    row = platform.start(world)
    platform.work(world, row.id)
    with pytest.raises(ConflictError, match=r"finalizable.*finalize"):
        rollouts.pause(world, row.id)


def test_finalize_names_what_is_missing(world):
    row = platform.start(world)
    with pytest.raises(ConflictError, match="240 of 240 items"):
        finish.finalize(world, row.id)


def test_every_state_change_leaves_an_audit_row(world):
    row = platform.start(world)
    platform.work(world, row.id)
    finish.finalize(world, row.id)
    actions = [a["action"] for a in view(world, "audit", target=str(row.id))]
    assert actions == [
        "rollout.planned",
        "rollout.deployed",
        "rollout.backfilling",
        "rollout.finalizable",
        "rollout.finalized",
    ]


def test_unknown_names_say_what_there_is(world):
    with pytest.raises(NotFoundError, match="pics"):
        starting.start(world, starting.StartRequest("pictures", "kin"))
    with pytest.raises(NotFoundError, match="kin, old"):
        platform.start(world, "nobody")
    with pytest.raises(NotFoundError, match="rollout list"):
        rollouts.pause(world, "12345")


def test_pausing_before_the_plan_is_written_and_resuming_plans_it(world):
    row = platform.start(world)
    rollouts.pause(world, row.id)
    assert rollouts.resume(world, row.id).state == "backfilling"
    assert platform.work(world, row.id).state == "finalizable"


def test_existing_embeddings_are_taken_as_they_are_and_bad_ones_are_refused(context, tmp_path):
    from orchestrator.errors import UsageError

    galleries.create_gallery(context, "pics", str(platform.draw_pictures(tmp_path / "pictures")))
    platform.register_network(context, tmp_path, "old", seed=0)
    stored = np.random.default_rng(0).normal(size=(240, 32)).astype(np.float32)
    with pytest.raises(UsageError, match="L2-normalised"):
        embed.import_embeddings(context, "pics", "old", stored)
    with pytest.raises(UsageError, match="240 × 32"):
        embed.import_embeddings(context, "pics", "old", stored[:7])
