"""Galleries asked in another modality: plots of PTVD's layout, refreshed from stored features to stored features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.ptvd_verses import write_plots
from models.datasets import list_items, read_item
from models.encoders import load_encoder
from models.encoders.stored_features import ridge
from orchestrator.errors import ConflictError, ExitCode, NotCertifiedError
from orchestrator.ledger.queries import flips as flip_queries
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
        NotCertifiedError, match="'captions', the tower of 'new' for texts, was never measured.*--queryset texts"
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
    galleries.import_query_set(
        asked, "plots", "overlap", f"ptvd-texts:{plots}", split="test", overlap=0.5
    )
    galleries.import_query_set(
        asked, "plots", "comments", f"ptvd-comments:{plots}", split="test", unlabelled=True
    )
    certified(asked, "takes"), certified(asked, "texts")
    row = rollout(asked, batch_size=10)
    assert row.config["calibration"] is None
    [query] = [each for each in list_items(f"ptvd-texts:{plots}", "test").items][:1]
    text = read_item(query.uri)
    # In the middle of the refresh nothing changes for who asks: the answer names its model.
    assert search.search(asked, "plots", search.Query(text=text), 3).model == "new"
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
        points = {
            view["queryset"]: view for view in read_view(connection, "flips_by_stage", limit=10_000, rollout=row.id)
            if view["k"] == 1 and view["slice"] == "all"
        }  # fmt: skip
    last = points["texts"]
    assert (last["n"], last["both_right"]) == (len(texts), int((right["old"] & right["new"]).sum()))
    assert last["negative_flips"] == int((right["old"] & ~right["new"]).sum())
    assert 0 < right["old"].mean()
    assert points["overlap"]["both_right"] + points["overlap"]["negative_flips"] >= right["old"].sum()
    assert "comments" not in points  # nobody knows what is right: churn, and no flips
    with browser_of(asked) as browser:
        page = browser.get(f"/rollouts/{row.id}").text
    assert "texts" in page
