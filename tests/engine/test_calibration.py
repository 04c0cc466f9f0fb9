"""Calibrated scores and the guard in a real rollout: replica and evaluator against brute force over the calibrated mixture."""

from __future__ import annotations

import numpy as np
import pytest

from models.datasets import read_item
from orchestrator.core.calibration import IDENTITY, Calibration, lay_out, widen
from orchestrator.core.flips import FlipCounts
from orchestrator.core.guard import Guard
from orchestrator.core.metrics import top_k
from orchestrator.errors import NotCertifiedError, UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, finish, rollouts
from orchestrator.service.certify import CertifyRequest, certify
from orchestrator.service.invariants import check_invariants
from orchestrator.service.start import StartRequest, start
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matrix import load_matrix
from orchestrator.serving.replica import Replica
from tests.engine import platform, strategies
from tests.engine.test_supersede import work_some
from tests.engine.test_traffic import Server
from workers.drain import drain


@pytest.fixture
def world(context, tmp_path):
    """Gallery `pics`, and `far`, whose scores on new vectors are on another scale; it is refused, its calibration pays."""
    platform.embedded_gallery(context, tmp_path)
    platform.register_network(context, tmp_path, "far", seed=0, moved=0.35)
    return context


def measured(context, new="far", **more):
    return certify(context, CertifyRequest("old", new, "pics", minimum_queries=20, **more))


def certified_by_hand(context, new="far", *, raw="certified"):
    """The certificate of a pair as it was measured, but with the verdict certified; `raw`: the verdict on raw scores."""
    row = measured(context, new)
    figures = row.measured | {
        "uncalibrated": (row.measured["uncalibrated"] or {"reason": ""}) | {"verdict": raw}
    }
    with context.engine.begin() as connection:
        model_queries.insert_certificate(
            connection, query_model_id=row.query_model_id, gallery_model_id=row.gallery_model_id, adapter_id=None,
            query_set_id=row.query_set_id, verdict="certified", reason="by hand", measured=figures,
        )  # fmt: skip
    return figures


def matrix_of(context, **more):
    with context.engine.connect() as connection:
        return load_matrix(connection, gallery_queries.gallery_by_name(connection, "pics").id, **more)


def replica_of(context):
    with context.engine.connect() as connection:
        return Replica(context, gallery_queries.gallery_by_name(connection, "pics"))


def queries_of(context, model):
    """The query set, and its vectors by a model."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        asked = load_query_set(connection, gallery_queries.query_sets_of_gallery(connection, gallery.id)[0])
        row = model_queries.model_by_name(connection, model)
    return asked, encode_uris(context.encoder(row), asked.uris)[0]


def by_definition(matrix, maps):
    """The calibrated mixture, written out row by row: (n, dim + 1)."""
    rows = np.zeros((len(matrix.vectors), matrix.vectors.shape[1] + 1), np.float32)
    for row, (vector, version) in enumerate(zip(matrix.vectors, matrix.version, strict=True)):
        if version:
            scale, offset = maps.get(int(version), (1.0, 0.0))
            rows[row] = [*(np.float32(scale) * vector), offset]
    return rows


def test_a_pair_on_two_scales_gets_a_calibration_that_pays_and_both_verdicts_are_kept(world):
    row = measured(world)
    fitted = row.measured["calibration"]
    assert fitted["on"]
    assert fitted["held_out"]["difference"]["high"] < 0
    assert fitted["held_out"]["nfr"][1] < 0.7 * fitted["held_out"]["nfr"][0]
    assert row.measured["uncalibrated"]["lowest"] < row.measured["lowest"]
    # One version alone: no map changes a ranking.
    raw, calibrated = row.measured["uncalibrated"]["curve"], row.measured["curve"]
    assert (raw[0], raw[-1]) == (calibrated[0], calibrated[-1])
    again = measured(world)
    assert again.measured == row.measured


def test_a_pair_on_one_scale_stays_raw(world, tmp_path):
    platform.register_network(world, tmp_path, "twin", seed=0, moved=0.0001)
    row = measured(world, "twin")
    assert row.verdict == "certified"
    assert not row.measured["calibration"]["on"]
    assert row.measured["uncalibrated"] is None
    assert platform.start(world, "twin").config["calibration"] is None


def test_where_queries_are_mapped_nothing_is_mixed_and_nothing_calibrated(world):
    strategies.register_adapter(world, world.settings.data_dir, "kin", "old")
    assert measured(world, "kin", adapter="kin-to-old").measured["calibration"] is None
    row = platform.start(world, adapter="kin-to-old")
    assert (row.config["calibration"], row.config["guard"]) == (None, None)


def test_replica_and_evaluator_answer_as_brute_force_over_the_calibrated_mixture(world):
    figures = certified_by_hand(world)
    follower = replica_of(world)
    before, version_before, _ = follower.snapshot()
    row = advance.advance(world, platform.start(world, "far").id)
    maps = {row.id: (figures["calibration"]["scale"], figures["calibration"]["offset"])}
    assert row.config["calibration"] == {"scale": maps[row.id][0], "offset": maps[row.id][1]}
    asked, vectors = queries_of(world, "far")
    pictures = [read_item(uri) for uri in asked.uris]
    checked, raw_differs, mixtures = [], 0, {}

    def compare(seq):
        nonlocal raw_differs
        matrix = matrix_of(world)
        mixtures[matrix.seq] = matrix
        rows = by_definition(matrix, maps)
        follower.catch_up()
        np.testing.assert_array_equal(follower.snapshot()[0], rows)
        scores, found = top_k(widen(vectors), rows, 5)
        answers = follower.search(pictures, k=5)
        assert [[hit.row for hit in answer.hits] for answer in answers] == found.tolist()
        np.testing.assert_allclose([[h.score for h in answer.hits] for answer in answers], scores, atol=1e-5)
        raw_differs += int((top_k(vectors, matrix.vectors, 1)[1] != found[:, :1]).sum())
        checked.append(int((matrix.version == row.id).sum()))

    mixtures[matrix_of(world).seq] = matrix_of(world)
    drain(world, row.id, owner="test", committed=compare)
    assert len(checked) > 5, "several mixtures were compared"
    assert raw_differs > 20, "the calibration decided something"
    fresh = replica_of(world)
    np.testing.assert_array_equal(fresh.snapshot()[0], follower.snapshot()[0])
    assert [finding for finding in check_invariants(world) if not finding.ok] == []

    platform.work(world, row.id)  # evaluates every stage
    _, old = queries_of(world, "old")
    relevance = asked.relevance
    right_before = relevance.hits(top_k(old, matrix_of(world, before=row.id).vectors, 1)[1])
    with world.engine.connect() as connection:
        stages = {
            s["seq"]: s
            for s in read_view(connection, "flip_summary", limit=10_000, rollout=row.id)
            if s["k"] == 1
        }
    compared = 0
    for seq, matrix in mixtures.items():
        if seq in stages:
            right = relevance.hits(top_k(widen(vectors), by_definition(matrix, maps), 1)[1])
            wanted = FlipCounts.of(right_before, right)
            stage = stages[seq]
            assert (stage["negative_flips"], stage["positive_flips"]) == (
                wanted.negative_flips,
                wanted.positive_flips,
            )
            compared += 1
    assert compared > 5

    rollouts.rollback(world, row.id)
    follower.catch_up()
    np.testing.assert_array_equal(follower.snapshot()[0], before)
    np.testing.assert_array_equal(follower.snapshot()[1], version_before)


def test_a_later_upgrade_is_mapped_onto_what_is_stored_and_ranks_as_if_raw(world):
    """`far` is stored with a map, `kin` without one comes on top: both need the same map, or they could not be compared."""
    certified_by_hand(world)
    first = platform.start(world, "far")
    platform.work(world, first.id)
    finish.finalize(world, first.id)
    assert (
        certify(world, CertifyRequest("far", "kin", "pics", minimum_queries=20)).measured["calibration"]
        is not None
    )
    with world.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        asked = gallery_queries.query_sets_of_gallery(connection, gallery.id)[0]
        ids = [model_queries.model_by_name(connection, name).id for name in ("kin", "far")]
        model_queries.insert_certificate(
            connection, query_model_id=ids[0], gallery_model_id=ids[1], adapter_id=None,
            query_set_id=asked.id, verdict="certified", reason="by hand", measured={},
        )  # fmt: skip
    row = advance.advance(world, platform.start(world, "kin").id)
    assert row.config["calibration"] == first.config["calibration"]
    _, vectors = queries_of(world, "kin")
    pictures = [read_item(uri) for uri in queries_of(world, "kin")[0].uris][:40]
    follower, seen = replica_of(world), []

    def compare(seq):
        follower.catch_up()
        wanted = top_k(vectors[:40], matrix_of(world).vectors, 1)[1][:, 0]
        assert [answer.hits[0].row for answer in follower.search(pictures, k=1)] == wanted.tolist()
        seen.append(seq)

    drain(world, row.id, owner="test", committed=compare)
    assert len(seen) > 5


def test_a_second_calibration_goes_through_both_maps(world):
    figures = certified_by_hand(world)
    first = platform.start(world, "far")
    platform.work(world, first.id)
    finish.finalize(world, first.id)
    own = {"on": True, "scale": 0.5, "offset": 0.25}
    with world.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        asked = gallery_queries.query_sets_of_gallery(connection, gallery.id)[0]
        ids = [model_queries.model_by_name(connection, name).id for name in ("kin", "far")]
        model_queries.insert_certificate(
            connection, query_model_id=ids[0], gallery_model_id=ids[1], adapter_id=None, query_set_id=asked.id,
            verdict="certified", reason="by hand", measured={"calibration": own, "uncalibrated": None},
        )  # fmt: skip
    config = platform.start(world, "kin").config["calibration"]
    base = Calibration.of(figures["calibration"])
    assert config == pytest.approx(
        {"scale": base.scale * 0.5, "offset": base.scale * 0.25 + base.offset}, rel=1e-12
    )


def test_off_means_raw_and_a_certificate_for_calibrated_scores_only_says_so(world):
    certified_by_hand(world)
    request = StartRequest("pics", "far", prototypes="classes", calibration="off")
    row = start(world, request)
    assert row.config["calibration"] is None
    assert replica_of(world).snapshot()[0].shape[1] == 32
    rollouts.rollback(world, row.id)
    certified_by_hand(world, raw="refused")
    with pytest.raises(NotCertifiedError, match="holds for calibrated scores only"):
        start(world, request)
    with pytest.raises(UsageError, match="choose auto or off"):
        start(world, StartRequest("pics", "far", calibration="on"))
    assert start(world, StartRequest("pics", "far", prototypes="classes")).config["calibration"] is not None


def test_a_guarded_search_merges_the_old_systems_answer_for_queries_at_risk(world):
    figures = certified_by_hand(world)
    row = advance.advance(
        world, start(world, StartRequest("pics", "far", prototypes="classes", guard=True)).id
    )
    whole, guard = Calibration.of(row.config["calibration"]), Guard.of(row.config["guard"])
    assert figures["guard"]["held_out"]["share"] > 0
    asked, vectors = queries_of(world, "far")
    _, old = queries_of(world, "old")
    pictures = [read_item(uri) for uri in asked.uris]
    follower, counted = replica_of(world), []

    def compare(seq):
        follower.catch_up()
        matrix = matrix_of(world)
        new = matrix.version == row.id
        if new.all():
            return
        scores = whole.apply(vectors @ matrix.vectors[new].T), vectors @ matrix.vectors[~new].T
        margins = scores[0].max(axis=1) - scores[1].max(axis=1)
        clear = (np.abs(margins - guard.low) > 1e-4) & (np.abs(margins - guard.high) > 1e-4)
        risk = guard.at_risk(margins.astype(np.float64))
        answers = follower.search(pictures, k=4)
        for query in np.flatnonzero(clear):
            assert answers[query].guarded == risk[query]
            if risk[query]:
                # By the definition: the old system on its own rows, the new one's raw scores mapped to where these are.
                fitted = Guard.of(figures["guard"]).merge
                merged = np.empty(len(new))
                merged[~new] = matrix.vectors[~new] @ old[query]
                merged[new] = fitted.apply(matrix.vectors[new] @ vectors[query])
                best = np.argsort(-merged, kind="stable")[:4]
                np.testing.assert_allclose([h.score for h in answers[query].hits], merged[best], atol=1e-4)
                assert {h.row for h in answers[query].hits} == set(best.tolist())
        counted.append((int(risk.sum()), int((~risk).sum())))

    drain(world, row.id, owner="test", committed=compare)
    assert sum(risky for risky, _ in counted) > 10
    assert sum(calm for _, calm in counted) > 10
    follower.catch_up()
    assert not any(answer.guarded for answer in follower.search(pictures, k=4)), (
        "one version: nothing is at risk"
    )


def test_a_guard_is_refused_where_old_queries_have_nothing_to_search(world):
    strategies.register_adapter(world, world.settings.data_dir, "old", "kin")
    measured(world, "kin", adapter="old-to-kin")
    with pytest.raises(UsageError, match="no guard for this rollout"):
        start(world, StartRequest("pics", "kin", adapter="old-to-kin", guard=True))
    assert IDENTITY.identity
    assert lay_out(np.ones((1, 2), np.float32), IDENTITY).tolist() == [[1, 1, 0]]


def test_above_lifted_vectors_new_ones_are_mapped_and_the_evaluator_counts_that(world):
    adapter = strategies.register_adapter(world, world.settings.data_dir, "old", "far")
    row = measured(world, adapter="old-to-far")
    own = {"on": True, "scale": 0.5, "offset": 0.3}
    with world.engine.begin() as connection:
        model_queries.insert_certificate(
            connection, query_model_id=row.query_model_id, gallery_model_id=row.gallery_model_id, adapter_id=adapter.id,
            query_set_id=row.query_set_id, verdict="certified", reason="by hand", measured={"calibration": own},
        )  # fmt: skip
    row = advance.advance(world, platform.start(world, "far", adapter="old-to-far").id)
    maps = {row.id: (0.5, 0.3)}
    follower, mixtures = replica_of(world), {}

    def compare(seq):
        follower.catch_up()
        matrix = mixtures[seq] = matrix_of(world, up_to=seq)
        np.testing.assert_array_equal(follower.snapshot()[0], by_definition(matrix, maps))

    drain(world, row.id, owner="test", committed=compare)
    platform.work(world, row.id)
    asked, vectors = queries_of(world, "far")
    with world.engine.connect() as connection:
        stages = {
            s["seq"]: s["both_right"] + s["positive_flips"]
            for s in read_view(connection, "flip_summary", limit=10_000, rollout=row.id)
            if s["k"] == 1
        }
    wanted = {
        seq: int(asked.relevance.hits(top_k(widen(vectors), by_definition(matrix, maps), 1)[1]).sum())
        for seq, matrix in mixtures.items()
    }
    assert len(wanted.keys() & stages.keys()) > 5
    assert {seq: stages[seq] for seq in wanted} == wanted
    assert len(set(wanted.values())) > 1


def test_the_old_side_of_a_canary_answers_by_the_calibration_it_had_before(world):
    """Brute force over the old system's vectors, `scale * s + offset` of each version; it is a mixture that was superseded."""
    certified_by_hand(world)
    first = advance.advance(world, platform.start(world, "far").id)
    work_some(world, first.id, 6)
    with world.engine.begin() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        asked = gallery_queries.query_sets_of_gallery(connection, gallery.id)[0]
        ids = [model_queries.model_by_name(connection, name).id for name in ("kin", "far")]
        model_queries.insert_certificate(
            connection, query_model_id=ids[0], gallery_model_id=ids[1], adapter_id=None, query_set_id=asked.id,
            verdict="certified", reason="by hand", measured={"calibration": {"on": True, "scale": 0.5, "offset": 0.25}},
        )  # fmt: skip
    server = Server(world)
    row = platform.start(world, "kin", canary=0, supersede=True)
    server.replica.catch_up()
    advance.advance(world, row.id)
    asked, vectors = queries_of(world, "far")
    pictures = [read_item(uri) for uri in asked.uris]
    own = first.config["calibration"]
    before = matrix_of(world, before=row.id)
    assert set(before.version.tolist()) == {1, first.id}
    scores, found = top_k(widen(vectors), by_definition(before, {first.id: (own["scale"], own["offset"])}), 5)
    assert (found != top_k(vectors, before.vectors, 5)[1]).any(), "without the map others are found"
    batches = []

    def compare(seq):
        server.replica.catch_up()
        batches.append(seq)
        answers, system = server.traffic.answer_all(server.replica, lambda asked: asked.search(pictures, k=5))
        assert (system, {answer.model for answer in answers}) == ("old", {"far"})
        assert [[hit.row for hit in answer.hits] for answer in answers] == found.tolist()
        np.testing.assert_allclose([[h.score for h in answer.hits] for answer in answers], scores, atol=1e-5)

    compare(0)
    drain(world, row.id, owner="test", committed=compare)
    assert len(batches) > 5
    later = Server(world)  # one that is started in the middle of it
    assert later.traffic.answer_all(later.replica, lambda asked: asked.search(pictures, k=5)) == (
        server.traffic.answer_all(server.replica, lambda asked: asked.search(pictures, k=5))
    )
    for each in (server, later):
        each.traffic.close()
