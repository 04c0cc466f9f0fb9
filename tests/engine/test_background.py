"""Thresholds of scores adjusted by a background set: as recomputed slowly from what is stored; the command; the dashboard."""

from __future__ import annotations

import html
import json
import shutil

import numpy as np
import pytest

from models.datasets import list_items
from orchestrator.core.calibration import Calibration
from orchestrator.core.metrics import top_k
from orchestrator.core.thresholds import ThresholdTracker
from orchestrator.errors import ExitCode
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, background_sets, embed, galleries
from orchestrator.service import start as starting
from orchestrator.service.background_sets import set_background
from orchestrator.service.certify import CertifyRequest, certify
from orchestrator.service.codecs import TrainCodecRequest, train_codec
from orchestrator.serving.background import embed_background, plan_background
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform, strategies
from tests.engine.dashboard_server import browser_of
from tests.engine.test_strategies import believe


@pytest.fixture
def copies(context, tmp_path):
    """Gallery `copies` embedded by `old`, with the queries `asked`, and models `far` and `same`."""
    galleries.create_gallery(context, "copies", "copies:references")
    galleries.import_query_set(context, "copies", "asked", "copies:queries")
    platform.register_network(context, tmp_path, "old", seed=0)
    platform.work(context, embed.embed_gallery(context, "copies", "old").id)
    for name, moved in (("far", 0.1), ("same", 0.0)):
        platform.register_network(context, tmp_path, name, seed=0, moved=moved)
        platform.certify_by_hand(context, name, "copies")
    return context


def thresholds(context, rollout_id, scores):
    with context.engine.connect() as connection:
        return read_view(connection, "match_threshold", limit=1000, rollout=rollout_id, scores=scores)


EMBEDDED: dict[tuple, np.ndarray] = {}


def embedded(context, model, uris):
    """By the model itself; kept, as reading hundreds of copies takes a second."""
    key = str(context.settings.data_dir), model.id, uris
    if key not in EMBEDDED:
        EMBEDDED[key] = encode_uris(context.encoder(model), uris)[0]
    return EMBEDDED[key]


def recomputed(context, rollout, seq=None, *, other=False):
    """Slowly: right, and adjusted score, of every query's first answer at a place of the log (None: the old system).

    `other`: with the background of the version that an item is not of.
    """
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "copies")
        queries = load_query_set(
            connection, gallery_queries.query_set_by_name(connection, gallery.id, "asked")
        )
        where = {"before": rollout.id} if seq is None else {"up_to": seq}
        matrix = load_matrix(connection, gallery.id, **where)
        new = model_queries.model_by_id(connection, rollout.to_model_id)
        old = model_queries.model_by_id(connection, rollout.from_model_id)
    vectors = embedded(context, old if seq is None else new, tuple(queries.uris))
    uris = tuple(item.uri for item in list_items("copies:background").items)
    background = {model.id: embedded(context, model, uris) for model in (old, new)}
    scores, rows = top_k(vectors, matrix.vectors, 1)
    adjusted = []
    for query, (score, row) in enumerate(zip(scores[:, 0], rows[:, 0], strict=True)):
        of_new = (matrix.version[row] == rollout.id) != other
        levels = sorted(background[new.id if of_new else old.id] @ vectors[query], reverse=True)
        adjusted.append(score - 1.5 * levels[9])
    return queries.relevance.hits(rows), np.array(adjusted, np.float32), queries.relevance.answerable


def expected(context, rollout, seq, **how):
    was_right, was, answerable = recomputed(context, rollout)
    right, now, _ = recomputed(context, rollout, seq, **how)
    everyone = np.arange(len(right))
    return ThresholdTracker(everyone, int(answerable.sum()), was_right, was).measure(right, now)


def same_numbers(row, found):
    return (
        (row["accepted"], row["accepted_right"], row["lost"], row["gained"])
        == (found.accepted, found.right, found.lost, found.gained)
        and row["threshold"] == pytest.approx(found.now.threshold, abs=1e-5)
        and row["old_threshold"] == pytest.approx(found.old.threshold, abs=1e-5)
        and row["micro_ap"] == pytest.approx(found.now.micro_ap, abs=1e-6)
        and row["old_micro_ap"] == pytest.approx(found.old.micro_ap, abs=1e-6)
        and row["recall_at_p90"] == pytest.approx(found.now.recall_at_precision)
    )


def test_adjusted_thresholds_are_those_recomputed_from_what_is_stored(copies, hotrefresh):
    code, out, _ = hotrefresh(
        "queryset", "background", "copies", "copies:background", "--beta", 1.5, "-o", "json"
    )
    assert (code, json.loads(out)["items"], json.loads(out)["replaced"]) == (0, 16, False)
    row = starting.start(copies, starting.StartRequest("copies", "far", batch_size=16))
    row = platform.work(copies, row.id)
    served, adjusted = (thresholds(copies, row.id, each) for each in ("served", "adjusted"))
    assert [each["coverage"] for each in served] == [each["coverage"] for each in adjusted]
    assert [each["coverage"] for each in adjusted] == [0, 0.25, 0.5, 0.75, 1]
    assert {(each["background_n"], each["neighbour"], each["beta"]) for each in adjusted} == {(16, 10, 1.5)}
    assert {(each["background_n"], each["neighbour"], each["beta"]) for each in served} == {
        (None, None, None)
    }
    for each in adjusted:
        assert same_numbers(each, expected(copies, row, each["seq"])), each["coverage"]
    assert not same_numbers(adjusted[2], expected(copies, row, adjusted[2]["seq"], other=True))
    assert adjusted[2]["threshold"] != pytest.approx(served[2]["threshold"], abs=1e-3)

    code, out, _ = hotrefresh("ledger", "thresholds", "copies", "--scores", "adjusted", "-o", "json")
    assert [each["threshold"] for each in json.loads(out)["thresholds"]] == [
        each["threshold"] for each in adjusted
    ]
    for scores, rows in (("served", served), ("adjusted", adjusted)):
        code, out, _ = hotrefresh(
            "ledger", "thresholds", "copies", "--newest", "--scores", scores, "-o", "json"
        )
        assert [each["lost"] for each in json.loads(out)["thresholds"]] == [rows[-1]["lost"]]
    with browser_of(copies) as client:
        page = html.unescape(client.get(f"/rollouts/{row.id}").text)
    for title in ("Threshold at 90 % precision on asked", "Matching flips on asked"):
        assert page.count(f"{title}, adjusted scores") > 0
        assert page.count(title) > page.count(f"{title}, adjusted scores")
    assert "1.5 times the query's 10th best among 16 items of the background set" in page


def test_with_the_same_model_the_adjusted_threshold_does_not_move(copies):
    set_background(copies, "copies", "copies:background")
    row = starting.start(copies, starting.StartRequest("copies", "same", batch_size=16))
    row = platform.work(copies, row.id)
    rows = thresholds(copies, row.id, "adjusted")
    assert len(rows) == 5
    assert len({each["threshold"] for each in rows} | {each["old_threshold"] for each in rows}) == 1
    assert {(each["lost"], each["gained"]) for each in rows} == {(0, 0)}


def test_a_background_is_shown_replaced_and_removed_and_a_rollout_keeps_its_own(copies, hotrefresh, tmp_path):
    code, _, error = hotrefresh("queryset", "background", "copies")
    assert code == ExitCode.NOT_FOUND
    assert "queryset background copies SOURCE" in error
    for source, more, said in (
        ("verses:gallery", (), "holds images"),
        ("copies:background", ("--neighbour", 40), "smaller --neighbour"),
        ("copies:references", (), "are in"),
    ):
        code, _, error = hotrefresh("queryset", "background", "copies", source, *more)
        assert (code, said in error) == (ExitCode.USAGE, True), error
    assert hotrefresh("queryset", "background", "copies", "copies:background")[0] == 0
    row = starting.start(copies, starting.StartRequest("copies", "far", batch_size=64))
    row = platform.work(copies, row.id)
    first = thresholds(copies, row.id, "adjusted")
    code, out, _ = hotrefresh(
        "queryset", "background", "copies", "copies:background", "--neighbour", 3, "-o", "json"
    )
    assert (code, json.loads(out)["replaced"]) == (0, True)
    code, out, _ = hotrefresh("queryset", "background", "copies", "-o", "json")
    assert (json.loads(out)["neighbour"], json.loads(out)["beta"]) == (3, 2.0)
    with copies.engine.begin() as connection:
        connection.exec_driver_sql(
            "DELETE FROM match_threshold WHERE seq > (SELECT min(seq) FROM match_threshold)"
        )
    platform.work(copies, row.id)
    again = thresholds(copies, row.id, "adjusted")
    assert [each["threshold"] for each in again] == [each["threshold"] for each in first]
    assert {each["neighbour"] for each in again} == {10}
    assert hotrefresh("queryset", "background", "copies", "--remove")[0] == ExitCode.USAGE
    assert hotrefresh("queryset", "background", "copies", "--remove", "--yes")[0] == 0
    with pytest.raises(background_sets.NotFoundError):
        background_sets.show_background(copies, "copies")


def test_lifted_and_calibrated_a_background_is_stored_as_items_of_its_version_are(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    shutil.copytree(tmp_path / "pictures", tmp_path / "again")
    set_background(context, "pics", str(tmp_path / "again"))
    strategies.register_adapter(context, tmp_path, "old", "kin")
    request = starting.StartRequest(
        "pics", "kin", strategy="transform-then-reembed", adapter="old-to-kin", prototypes="classes"
    )
    pair = CertifyRequest("old", "kin", "pics", minimum_queries=20, adapter="old-to-kin")
    assert certify(context, pair).verdict == "certified"
    row = starting.start(context, request)
    advance.advance(context, row.id)
    with context.engine.connect() as connection:
        row = rollout_queries.rollout_by_id(connection, row.id)
        before = load_matrix(connection, row.gallery_id, before=row.id)
        lifted = load_matrix(connection, row.gallery_id)
        [old] = set(before.version.tolist())
        maps = {old: Calibration(0.8, 0.1)}
        plan = plan_background(connection, row, row.id, before.version, lifted.version, maps)
        new = model_queries.model_by_name(connection, "kin")
    found = embed_background(context, plan, row.id, before.version, lifted.version)
    assert set(found.before) == {old}
    assert set(found.deployed) == {old, row.id}
    for system, matrix in ((found.before, before), (found.deployed, lifted)):
        expected = 0.8 * matrix.vectors
        np.testing.assert_allclose(system[old][:, :-1], expected, atol=1e-5)
        np.testing.assert_allclose(system[old][:, -1], 0.1, atol=1e-6)
    assert np.abs(before.vectors - lifted.vectors).max() > 1e-3
    straight = encode_uris(context.encoder(new), plan.row.uris)[0]
    np.testing.assert_allclose(found.deployed[row.id][:, :-1], straight, atol=1e-5)
    assert not found.deployed[row.id][:, -1].any()


def test_a_gallery_of_codes_has_no_adjusted_thresholds_and_the_command_says_why(
    context, hotrefresh, tmp_path
):
    platform.embedded_gallery(context, tmp_path)
    shutil.copytree(tmp_path / "pictures", tmp_path / "again")
    set_background(context, "pics", str(tmp_path / "again"))
    request = TrainCodecRequest("signs", "pics", bits=1, seed=0, options={"crowded": 1.0})
    train_codec(context, request, lambda done, total: None)
    believe(context, "old", "signs")
    row = starting.start(context, starting.StartRequest("pics", "signs"))
    row = platform.work(context, row.id)
    assert thresholds(context, row.id, "served")
    assert not thresholds(context, row.id, "adjusted")
    code, _, error = hotrefresh("ledger", "thresholds", "pics", "--scores", "adjusted")
    assert (code, "model signs is a codec" in error) == (0, True), error
