"""Copy detection in the platform: thresholds along a rollout on the copies, in the ledger, by command, on the dashboard."""

from __future__ import annotations

import csv
import html
import json
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

from models.datasets import list_items, read_item
from models.matching.local import Sift
from models.matching.matcher import match_count
from orchestrator.core.matching_metrics import matching_metrics
from orchestrator.core.metrics import top_k
from orchestrator.dashboard.words import percent
from orchestrator.errors import ConflictError, ExitCode
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.ledger.rows import GalleryRow
from orchestrator.service import embed, galleries
from orchestrator.service import search as searching
from orchestrator.service import start as starting
from orchestrator.serving.answers import Answer, Hit
from orchestrator.serving.embedding import encode_uris, load_query_set
from orchestrator.serving.matching import LEAST_MATCHES, check_matchable, matched, views_of
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform
from tests.engine.api_server import client_of
from tests.engine.dashboard_server import browser_of


@pytest.fixture
def references(context, tmp_path):
    """Gallery `copies` embedded by `old`."""
    galleries.create_gallery(context, "copies", "copies:references")
    platform.register_network(context, tmp_path, "old", seed=0)
    platform.work(context, embed.embed_gallery(context, "copies", "old").id)
    return context


@pytest.fixture
def copies(references, tmp_path):
    """The same with the queries `asked`, half of which have no answer, and a model `far`."""
    galleries.import_query_set(references, "copies", "asked", "copies:queries")
    platform.register_network(references, tmp_path, "far", seed=0, moved=0.1)
    platform.certify_by_hand(references, "far", "copies")
    return references


def view(context, name, **filters):
    with context.engine.connect() as connection:
        return read_view(connection, name, limit=10_000, **filters)


def searched_in_full(context, model, rollout_id=None):
    """(right, score) of every query's first answer, and the metrics of the list: by searching the gallery as it is stored."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "copies")
        queries = load_query_set(
            connection, gallery_queries.query_set_by_name(connection, gallery.id, "asked")
        )
        matrix = (
            load_matrix(connection, gallery.id, before=rollout_id)
            if rollout_id
            else load_matrix(connection, gallery.id)
        )
        encoder = context.encoder(model_queries.model_by_name(connection, model))
    vectors, _ = encode_uris(encoder, queries.uris)
    scores, rows = top_k(vectors, matrix.vectors, 1)
    relevance = queries.relevance
    truth = np.repeat(np.arange(len(relevance)), np.diff(relevance.offsets))
    found = matching_metrics(truth, relevance.rows, np.arange(len(rows)), rows[:, 0], scores[:, 0])
    return relevance.hits(rows), scores[:, 0], found


def test_a_rollout_on_copies_shows_its_threshold_by_coverage_in_ledger_view_command_and_dashboard(
    copies, hotrefresh
):
    row = starting.start(copies, starting.StartRequest("copies", "far", batch_size=16))
    row = platform.work(copies, row.id)
    points = view(copies, "match_threshold", rollout=row.id)
    assert [each["coverage"] for each in points] == [0, 0.25, 0.5, 0.75, 1]
    assert {(each["queryset"], each["n"], each["true_pairs"]) for each in points} == {("asked", 336, 168)}
    was_right, was, before = searched_in_full(copies, "old", row.id)
    right, scores, after = searched_in_full(copies, "far")
    newest = points[-1]
    for name, whole in (("", after), ("old_", before)):
        assert newest[f"{name}micro_ap"] == pytest.approx(whole.micro_ap, abs=1e-6)
        assert newest[f"{name}recall_at_p90"] == whole.recall_at_precision
        assert newest[f"{name}threshold"] == pytest.approx(whole.threshold, abs=1e-6)
    cut = newest["old_threshold"]
    accepted_before, accepted = (was >= cut - 1e-6) & was_right, (scores >= cut - 1e-6) & right
    assert newest["lost"] == (accepted_before & ~accepted).sum() > 0
    assert newest["gained"] == (accepted & ~accepted_before).sum()
    assert newest["accepted"] == (scores >= cut - 1e-6).sum()
    assert len({each["threshold"] for each in points}) > 2, "the threshold moves with the mixture"

    code, out, _ = hotrefresh("ledger", "thresholds", "copies", "-o", "json")
    assert code == 0
    assert [each["threshold"] for each in json.loads(out)["thresholds"]] == [
        each["threshold"] for each in points
    ]
    code, out, _ = hotrefresh(
        "ledger", "thresholds", "copies", "--newest", "--queryset", "asked", "-o", "json"
    )
    assert [each["lost"] for each in json.loads(out)["thresholds"]] == [newest["lost"]]

    with browser_of(copies) as client:
        page = html.unescape(client.get(f"/rollouts/{row.id}").text)
    assert "Threshold at 90 % precision on asked" in page
    assert (
        f"score at least {newest['threshold']:.3f}, 90 % are right at {percent(1.0)} of the gallery" in page
    )
    assert f"{newest['lost']} right answers are no longer accepted, {newest['gained']} are only now" in page


def flips_of(context, row):
    """(query, new item) -> row of the view, of flips against the old system."""
    rows = view(context, "flip_items", rollout=row.id, k=1, reference="old_system")
    return {(each["query"], each["new_item"]): each for each in rows}


def test_the_flips_of_a_rollout_on_copies_are_verified_a_few_at_a_time(copies, hotrefresh, tmp_path):
    row = platform.work(
        copies, starting.start(copies, starting.StartRequest("copies", "far", batch_size=64)).id
    )
    flips = flips_of(copies, row)
    assert {each["kind"] for each in flips.values()} == {"negative", "positive"}
    assert {each["old_verified"] for each in flips.values()} == {None}
    code, out, _ = hotrefresh("ledger", "verify", row.id, "--limit", 5, "-o", "json")
    done = json.loads(out)
    assert (code, done["compared"], done["unread"], done["waiting"]) == (0, 5, 0, len(flips) - 5)
    flips = flips_of(copies, row)
    assert sum(each["old_verified"] is not None for each in flips.values()) == 5
    gone = next(query for (query, _), each in flips.items() if each["old_verified"] is None)
    with copies.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE query SET uri = 'copy:0/nowhere/crop' WHERE key = '{gone}'")
    pairs = tmp_path / "pairs.csv"
    code, out, _ = hotrefresh("ledger", "verify", row.id, "--export", pairs, "-o", "json")
    done = json.loads(out)
    assert (done["compared"], done["unread"], done["waiting"]) == (len(flips) - 5, 1, 0)

    # Slowly, each flip by itself; and what is verified is nearly always what is right.
    uris = {
        each.key: each.uri
        for which in ("queries", "references")
        for each in list_items(f"copies:{which}").items
    }
    expected, right = set(), []
    for (key, _), flip in flips_of(copies, row).items():
        if key == gone:
            assert (flip["old_matches"], flip["old_verified"], flip["new_verified"]) == (None, False, False)
            continue
        for which in ("old", "new"):
            item = flip[f"{which}_item"]
            matches = most_matches(uris[item], read_item(uris[key]))
            assert flip[f"{which}_matches"] == matches
            if flip[f"{which}_verified"]:
                assert matches >= LEAST_MATCHES
                expected.add((uris[key], uris[item], matches))
                right.append((flip["kind"] == "negative") == (which == "old"))
    assert len(right) >= 5
    assert sum(right) >= 0.9 * len(right)
    with pairs.open(newline="") as file:
        written = [(line["query"], line["item"], int(line["matches"])) for line in csv.DictReader(file)]
    assert (set(written), len(written)) == (expected, len(expected))
    code, out, _ = hotrefresh("ledger", "flips", row.id, "-o", "json")
    assert {each["old_verified"] for each in json.loads(out)["flips"]} >= {True, False}


def most_matches(uri, picture):
    """Points of an item that match a picture, or what is pasted into it."""
    sift = Sift()
    return max(match_count(sift(read_item(uri)), sift(view), mirrored=True) for view in views_of(picture))


def test_flips_of_texts_are_not_verified():
    gallery = GalleryRow(1, "words", "text", "words.csv", 0, datetime.now(UTC), 0, [])
    with pytest.raises(ConflictError, match="holds texts"):
        check_matchable(gallery)


def test_a_search_verifies_the_best_of_the_index_by_local_matching(
    references, hotrefresh, tmp_path, monkeypatch
):
    asked = {item.key: item.uri for item in list_items("copies:queries").items}
    copy = next(key for key in asked if key.endswith("/crop"))
    read_item(asked[copy]).save(tmp_path / "asked.png")
    plain = searching.search(references, "copies", searching.Query(image=tmp_path / "asked.png"), 30)
    assert {hit.verified for hit in plain.hits} == {None}
    found = searching.search(
        references, "copies", searching.Query(image=tmp_path / "asked.png"), 30, match=True
    )

    # Slowly, from the parts: counts of points of the 20 best, and the index's order where they are equal.
    assert len(views_of(read_item(asked[copy]))) == 1
    counts = {hit.key: most_matches(hit.uri, read_item(asked[copy])) for hit in plain.hits[:20]}
    original = f"{copy.split('/')[0]}/original"
    place = list(counts)
    expected = sorted(place, key=lambda key: -counts[key] * (2 if key == original else 1))
    assert [hit.key for hit in found.hits] == [*expected, *(hit.key for hit in plain.hits[20:])]
    assert [hit.matches for hit in found.hits] == [counts[key] for key in expected] + [None] * 10
    assert [hit.key for hit in found.hits if hit.verified] == [original]
    assert found.hits[0].key == original != plain.hits[0].key, "the index alone is wrong here"
    assert {hit.key: hit.score for hit in found.hits} == {hit.key: hit.score for hit in plain.hits}

    code, out, _ = hotrefresh(
        "gallery", "search", "copies", "--image", tmp_path / "asked.png", "--match", "-k", 2, "-o", "json"
    )
    first, second = json.loads(out)["hits"]
    assert (code, first["key"], first["matches"], first["verified"]) == (0, original, counts[original], True)
    assert (second["verified"], second["key"]) == (False, expected[1])
    with client_of(references) as client:
        form = {"k": "2", "match": "true"}
        file = {"file": ("a.png", (tmp_path / "asked.png").read_bytes())}
        served = client.post("/search/copies/image", files=file, data=form).json()["hits"]
        assert [(hit["key"], hit["matches"]) for hit in served] == [(k, counts[k]) for k in expected[:2]]
        by_key = client.post("/search/copies", json={"key": original, "k": 1, "match": True}).json()["hits"]
        assert [(hit["key"], hit["verified"]) for hit in by_key] == [(original, True)]
        assert "verified" not in client.post("/search/copies", json={"key": original}).json()["hits"][0]
        for wrong in (
            {"vector": [1.0] * 32},
            {"queries": [{"key": original}]},
            {"key": original, "match": "yes"},
        ):
            path = "/search/copies/batch" if "queries" in wrong else "/search/copies"
            assert client.post(path, json={"match": True} | wrong).status_code == 400
        monkeypatch.setitem(sys.modules, "cv2", None)
        refused = client.post("/search/copies", json={"key": original, "match": True})
        assert refused.status_code == 400
        assert "hotrefresh[matching]" in refused.json()["error"]["message"]
    code, _, error = hotrefresh("gallery", "search", "copies", "--key", original, "--match")
    assert code == ExitCode.USAGE
    assert "hotrefresh[matching]" in error


def test_what_is_pasted_into_a_picture_is_found_by_its_crop_alone(references, monkeypatch, tmp_path):
    asked = [item for item in list_items("copies:queries").items if item.key.endswith("/overlay")]
    pasted = next(item for item in asked if item.label and len(views_of(read_item(item.uri))) == 2)
    read_item(pasted.uri).save(tmp_path / "asked.png")
    query = searching.Query(image=tmp_path / "asked.png")
    found = searching.search(references, "copies", query, 40, match=True)
    original = f"{pasted.key.split('/')[0]}/original"
    assert found.hits[0].key == original
    assert found.hits[0].verified
    assert found.hits[0].matches == most_matches(found.hits[0].uri, read_item(pasted.uri))
    plain = searching.search(references, "copies", query, 40)
    scores = {hit.key: hit.score for hit in plain.hits}
    assert found.hits[0].score > scores.get(original, -1), "the score is that of the nearer view"
    assert all(hit.score >= scores.get(hit.key, -1) - 1e-6 for hit in found.hits)
    with client_of(references) as client:
        file = {"file": ("a.png", (tmp_path / "asked.png").read_bytes())}
        served = client.post("/search/copies/image", files=file, data={"k": "40", "match": "true"}).json()[
            "hits"
        ]
    assert [(hit["key"], hit["matches"]) for hit in served] == [(h.key, h.matches) for h in found.hits]

    monkeypatch.setattr(searching, "views_of", lambda picture: [picture])
    whole = searching.search(references, "copies", query, 40, match=True)
    assert original not in [hit.key for hit in whole.hits if hit.verified]


def test_what_cannot_be_read_any_more_stays_a_hit_that_was_not_compared():
    items = list_items("copies:references").items[:3]
    hits = [Hit(row, i.key, i.uri, None, 1 - row / 10, 1) for row, i in enumerate(items)]
    gone = Hit(7, "gone", "copy:0/nowhere/original", None, 0.95, 1)
    answer = Answer((hits[0], gone, *hits[1:]), "old", 1, 1.0, 1)
    found = matched([answer], [read_item(items[2].uri)], 3)
    assert [(hit.key, hit.verified) for hit in found.hits[:1]] == [(items[2].key, True)]
    assert [hit.verified for hit in found.hits[1:]] == [False, False]
    assert found.hits[0].matches > max(10, found.hits[1].matches)
    whole = matched([answer], [read_item(items[2].uri)], 10).hits
    assert (whole[-1].key, whole[-1].matches, whole[-1].verified) == ("gone", None, False)
    assert len(whole) == 4
