"""Galleries asked in another modality: plots of PTVD's layout, refreshed from stored features to stored features."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pytest

from bench.ptvd_verses import write_plots
from models.datasets import list_items, read_item
from models.encoders import load_encoder
from models.encoders.stored_features import ridge
from orchestrator.errors import ConflictError, ExitCode, NotCertifiedError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import certify, embed, galleries, search, towers
from orchestrator.service import start as starting
from tests.engine import platform
from tests.engine.api_server import client_of
from tests.engine.dashboard_server import browser_of

EPISODES = 10


@pytest.fixture(scope="module")
def plots(tmp_path_factory) -> Path:
    return write_plots(tmp_path_factory.mktemp("verses"), episodes=EPISODES)


@pytest.fixture
def asked(context, plots):
    """Gallery `plots` of the test episodes embedded by `old`; `new`, mapped into its space; both with the tower `captions`."""
    source = f"ptvd:{plots}"
    towers.import_features(context, "old", "wl64", source, None, None)
    towers.import_features(context, "new", "wl256", source, "train", "old")
    towers.train_tower(
        context, "captions", "old", source, "train", steps=40, seed=0, progress=lambda done, total: None
    )
    galleries.create_gallery(context, "plots", source, "test")
    platform.work(context, embed.embed_gallery(context, "plots", "old").id)
    galleries.import_query_set(context, "plots", "takes", f"ptvd:{plots.parent / 'takes'}", split="test")
    galleries.import_query_set(context, "plots", "texts", f"ptvd-texts:{plots}", split="test")
    return context


def certified(context, queries: str) -> str:
    request = certify.CertifyRequest("old", "new", "plots", queries, minimum_queries=20, loss=0.1)
    return certify.certify(context, request).verdict


def rollout(context, **more):
    return starting.start(context, starting.StartRequest("plots", "new", order="row", **more))


def test_a_rollout_asks_for_towers_and_for_their_own_certificates(asked, plots):
    assert certified(asked, "takes") == "certified"
    with pytest.raises(ConflictError, match="'new' embeds videos and has no tower for texts"):
        rollout(asked)
    towers.add_tower(asked, "new", "captions")
    with pytest.raises(
        NotCertifiedError,
        match=r"'captions', the tower of 'new' for texts, was never measured.*--queryset texts",
    ):
        rollout(asked)
    assert certified(asked, "texts") == "certified"
    # A frozen tower is shared: that it was measured towards one model says nothing of another.
    towers.import_features(asked, "newer", "wl64", f"ptvd:{plots}", "train", "old")
    towers.add_tower(asked, "newer", "captions")
    with asked.engine.connect() as connection:
        ids = {each.name: each.id for each in model_queries.list_models(connection)}
        gallery = gallery_queries.gallery_by_name(connection, "plots")
        pair = gallery.id, ids["captions"], ids["old"], None
        assert model_queries.newest_certificate(connection, *pair, tower_of_model_id=ids["new"]) is not None
        assert model_queries.newest_certificate(connection, *pair, tower_of_model_id=ids["newer"]) is None
        assert model_queries.newest_certificate(connection, *pair) is None


def test_texts_are_measured_by_towers_through_a_whole_refresh(asked, plots):
    towers.add_tower(asked, "new", "captions")
    galleries.import_query_set(asked, "plots", "overlap", f"ptvd-texts:{plots}", split="test", overlap=0.5)
    galleries.import_query_set(
        asked, "plots", "comments", f"ptvd-comments:{plots}", split="test", unlabelled=True
    )
    certified(asked, "takes"), certified(asked, "texts")
    row = rollout(asked, batch_size=10)
    assert row.config["calibration"] is None
    text = read_item(list_items(f"ptvd-texts:{plots}", "test").items[0].uri)
    # In the middle of the refresh nothing changes for who asks: the answer names its model.
    here = search.search(asked, "plots", search.Query(text=text), 3)
    assert here.model == "new"
    with client_of(asked) as client:
        served = client.post("/search/plots", json={"text": text, "k": 3}).json()
        both = client.post(
            "/search/plots/batch", json={"queries": [{"text": text}, {"key": here.hits[0].key}]}
        )
        assert [hit["key"] for hit in served["hits"]] == [hit.key for hit in here.hits]
        assert [each["hits"][0]["key"] for each in both.json()["answers"]] == [here.hits[0].key] * 2
    with pytest.raises(ConflictError, match="query sets of texts of gallery 'plots'"):
        towers.remove_tower(asked, "new", "text")
    assert platform.work(asked, row.id).state in ("finalizable", "finalized")

    vectors = {}
    for name in ("old", "new"):
        with asked.engine.connect() as connection:
            encoder = asked.encoder(model_queries.model_by_name(connection, name))
        items = [read_item(item.uri) for item in list_items(f"ptvd:{plots}", "test").items]
        vectors[name] = encoder.encode([encoder.preprocess(item) for item in items])
    with asked.engine.connect() as connection:
        tower = asked.encoder(model_queries.model_by_name(connection, "captions"))
    texts = [read_item(item.uri) for item in list_items(f"ptvd-texts:{plots}", "test").items]
    said = tower.encode([tower.preprocess(each) for each in texts])
    own = np.arange(len(texts))
    right = {name: (said @ vectors[name].T).argmax(axis=1) == own for name in vectors}
    with asked.engine.connect() as connection:
        stages = read_view(connection, "flip_summary", limit=10_000, rollout=row.id)
    points = {each["queryset"]: each for each in stages if (each["k"], each["slice"]) == (1, "all")}
    last = points["texts"]
    assert (last["n"], last["both_right"]) == (len(texts), int((right["old"] & right["new"]).sum()))
    assert last["negative_flips"] == int((right["old"] & ~right["new"]).sum())
    assert right["old"].mean() > 0
    assert points["overlap"]["both_right"] + points["overlap"]["negative_flips"] >= right["old"].sum()
    assert "comments" not in points  # nobody knows what is right: churn, and no flips
    with browser_of(asked) as browser:
        certificates = browser.get("/certificates?queryset=plots/texts").text
        flips = browser.get(f"/rollouts/{row.id}/flips?queryset=texts&reference=old_system&k=1").text
    assert "captions for new on old" in certificates
    said_first = next(texts[at] for at in np.flatnonzero(right["old"] != right["new"]))
    assert said_first[:60] in html.unescape(flips)  # a segment without a picture is shown by its sentence


def test_texts_are_refused_while_their_own_pair_is(asked, plots):
    text = search.Query(text="in the beginning")
    assert search.search(asked, "plots", text, 1).model == "old"
    with pytest.raises(ConflictError, match="holds videos; search it with --video FILE, --text"):
        search.search(asked, "plots", search.Query(image=Path("a.png")), 1)
    towers.add_tower(asked, "new", "captions")
    certified(asked, "takes"), certified(asked, "texts")
    row = rollout(asked)
    with asked.engine.begin() as connection:
        ids = {each.name: each.id for each in model_queries.list_models(connection)}
        gallery = gallery_queries.gallery_by_name(connection, "plots")
        texts = gallery_queries.query_set_by_name(connection, gallery.id, "texts")
        model_queries.insert_certificate(
            connection, query_model_id=ids["captions"], gallery_model_id=ids["old"], adapter_id=None,
            query_set_id=texts.id, verdict="refused", reason="by hand", measured={}, tower_of_model_id=ids["new"],
        )  # fmt: skip
    with pytest.raises(NotCertifiedError, match=r"'captions for new' may not search .* of 'old'.*by hand"):
        search.search(asked, "plots", text, 1)
    key = next(item.key for item in list_items(f"ptvd:{plots}", "test").items)
    assert (
        search.search(asked, "plots", search.Query(key=key), 1).model == "new"
    )  # videos are asked as before
    platform.work(asked, row.id)
    assert search.search(asked, "plots", text, 1).model == "new"  # no vector of the old model is left


def test_what_cannot_be_a_tower(asked, plots):
    platform.register_network(asked, plots.parent, "pictures", seed=0, dim=32)
    for model, tower, says in (
        ("old", "new", "both embed videos"),
        ("old", "pictures", "has 32 dimensions and 'old' 64"),
    ):
        with pytest.raises(ConflictError, match=says):
            towers.add_tower(asked, model, tower)


def test_maps_and_towers_are_of_training_episodes_alone(asked, plots):
    with asked.engine.connect() as connection:
        new = model_queries.model_by_name(connection, "new")
    learned = set(new.manifest["training"]["episodes"])
    held = {item.attributes["episode"] for item in list_items(f"ptvd:{plots}", "test").items}
    assert len(learned) == EPISODES - 2
    assert len(held) == 2
    assert not learned & held
    segments = [read_item(item.uri) for item in list_items(f"ptvd:{plots}", "train").items]
    assert {each.segment.episode for each in segments} == learned
    files = {
        name: [np.load(plots / "features" / name / f"{each.segment.episode}.npy")[each.segment.index] for each in segments]
        for name in ("wl64", "wl256")
    }  # fmt: skip
    encoder = load_encoder(Path(new.uri))
    expected = np.stack(files["wl256"]) @ ridge(np.stack(files["wl256"]), np.stack(files["wl64"]))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(encoder.encode([encoder.preprocess(each) for each in segments]), expected, atol=1e-5)


def test_commands(hotrefresh, context, plots):
    data = f"ptvd:{plots}"
    assert hotrefresh("model", "features", "old", "wl64", "--data", data)[0] == 0
    code, _, said = hotrefresh("model", "features", "new", "wl65", "--data", data)
    assert (code, "there are wl256, wl64" in said) == (ExitCode.USAGE, True)
    train = ("--data", data, "--split", "train", "--steps", 2, "-o", "json")
    assert hotrefresh("model", "tower", "train", "captions", "--model", "old", *train)[0] == 0
    listed = json.loads(hotrefresh("model", "tower", "list", "-o", "json")[1])["towers"]
    assert [(each["model"], each["modality"], each["tower"]) for each in listed] == [
        ("old", "text", "captions")
    ]
    assert hotrefresh("model", "tower", "remove", "old", "text")[0] == 0
    assert hotrefresh("model", "tower", "remove", "old", "text")[0] == ExitCode.NOT_FOUND
    assert hotrefresh("model", "tower", "add", "old", "captions")[0] == 0
    assert hotrefresh("gallery", "create", "plots", data, "--split", "test")[0] == 0
    texts = ("plots", "overlap", f"ptvd-texts:{plots}", "--split", "test", "--overlap")
    assert "lies in (0, 1]" in hotrefresh("queryset", "import", *texts, "2")[2]
    assert hotrefresh("queryset", "import", *texts, "0.5")[0] == 0
    [shown] = json.loads(hotrefresh("queryset", "list", "plots", "-o", "json")[1])["query_sets"]
    assert (shown["modality"], shown["relevance"]) == ("text", "pairs")
