"""Items of several modalities: a gallery of plots goes from its sentences to its features and back, under certificates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.ptvd_verses import write_plots
from models.datasets import list_items, read_item
from orchestrator.errors import ConflictError, ExitCode, NotCertifiedError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import modalities as modality_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import advance, certify, embed, galleries, guide, items, rollouts, search, towers
from orchestrator.service import models as model_service
from orchestrator.service import start as starting
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform
from tests.engine.api_server import client_of
from tests.engine.dashboard_server import browser_of
from tests.engine.shard_servers import Cluster
from tests.engine.test_shards import at_the_same_place
from tests.engine.test_supersede import work_some

EPISODES = 10


@pytest.fixture(scope="module")
def plots(tmp_path_factory) -> Path:
    """20 segments an episode; of `said.csv` each row is the first half of a segment's sentence."""
    folder = write_plots(tmp_path_factory.mktemp("verses"), episodes=EPISODES)
    said = list_items(f"ptvd-texts:{folder}", "test").items
    rows = [(f"q-{i.key}", _half(read_item(i.uri)), i.label) for i in said]
    platform.write_csv(folder.parent / "said.csv", ("key", "text", "label"), rows)
    return folder


def _half(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])


@pytest.fixture
def plays(context, plots):
    """Gallery `plots` embedded by its texts; `clips` embeds its videos, and each model is the other's tower."""
    source = f"ptvd:{plots}"
    towers.import_features(context, "clips", "wl64", source, None, None)
    towers.train_tower(
        context, "captions", "clips", source, "train", steps=40, seed=0, progress=lambda done, total: None
    )
    made = galleries.create_gallery(context, "plots", source, "test")
    assert (made.modality, made.also) == ("video", {"text": made.taken})
    platform.work(context, embed.embed_gallery(context, "plots", "captions").id)
    galleries.import_query_set(context, "plots", "takes", f"ptvd:{plots.parent / 'takes'}", split="test")
    galleries.import_query_set(context, "plots", "said", str(plots.parent / "said.csv"))
    return context


def model_of(context, name):
    with transaction(context.engine) as connection:
        return context.encoder(model_queries.model_by_name(connection, name))


def encoded(context, name: str, contents: list) -> np.ndarray:
    encoder = model_of(context, name)
    return encoder.encode([encoder.preprocess(each) for each in contents])


def stored(context) -> np.ndarray:
    with transaction(context.engine) as connection:
        return load_matrix(connection, gallery_queries.gallery_by_name(connection, "plots").id).vectors


def certified(context, queries: str, loss: float = 0.9):
    request = certify.CertifyRequest("captions", "clips", "plots", queries, minimum_queries=20, loss=loss)
    return certify.certify(context, request)


def test_a_refresh_from_texts_to_videos(plays, plots):
    source = list_items(f"ptvd:{plots}", "test").items
    segments = [read_item(item.uri) for item in source]
    by_texts = encoded(plays, "captions", [each.sentence for each in segments])
    by_videos = encoded(plays, "clips", segments)
    assert np.allclose(stored(plays), by_texts, atol=1e-6)
    request = starting.StartRequest("plots", "clips", order="row", batch_size=10)
    with pytest.raises(ConflictError, match="'captions' embeds texts and has no tower for videos"):
        certified(plays, "takes")
    towers.add_tower(plays, "captions", "clips")
    takes, said = certified(plays, "takes"), certified(plays, "said")
    assert (takes.verdict, said.verdict) == ("certified", "certified")
    # What each certificate measured, by hand: who asks whom.
    asked = {
        "takes": encoded(
            plays,
            "clips",
            [read_item(i.uri) for i in list_items(f"ptvd:{plots.parent / 'takes'}", "test").items],
        ),
        "said": encoded(plays, "captions", [_half(each.sentence) for each in segments]),
    }
    own = np.arange(len(segments))
    right = {
        (name, space): (queries @ vectors.T).argmax(axis=1) == own
        for name, queries in asked.items()
        for space, vectors in (("texts", by_texts), ("videos", by_videos))
    }
    for name, row in (("takes", takes), ("said", said)):
        assert row.measured["old_old"] == pytest.approx(right[name, "texts"].mean())
        assert row.measured["new_new"] == pytest.approx(right[name, "videos"].mean())
    with pytest.raises(UsageError, match="embed different modalities"):
        starting.start(plays, starting.StartRequest("plots", "clips", order="row", guard=True))
    row = starting.start(plays, request)
    # Nothing is refreshed yet: who asks in words, by a key or by vectors is answered by texts' embeddings.
    text = _half(segments[3].sentence)
    for query in (search.Query(text=text), search.Query(key=source[3].key)):
        answer = search.search(plays, "plots", query, 3)
        assert (answer.model, {hit.model for hit in answer.hits}) == ("clips", {"captions"})
    with client_of(plays) as client:
        both = client.post(
            "/search/plots/batch", json={"queries": [{"text": text}, {"key": source[3].key}], "k": 3}
        ).json()
    for each, query in zip(both["answers"], (asked["said"][3], by_videos[3]), strict=True):
        best = np.argsort(-(by_texts @ query))[:3]
        assert [hit["row"] for hit in each["hits"]] == best.tolist()
    assert platform.work(plays, row.id).state in ("finalizable", "finalized")
    assert np.allclose(stored(plays), by_videos, atol=1e-6)
    with plays.engine.connect() as connection:
        stages = read_view(connection, "flip_summary", limit=10_000, rollout=row.id)
    points = {each["queryset"]: each for each in stages if (each["k"], each["slice"]) == (1, "all")}
    for name in asked:
        before, after = right[name, "texts"], right[name, "videos"]
        assert points[name]["negative_flips"] == int((before & ~after).sum())
        assert points[name]["positive_flips"] == int((~before & after).sum())
    assert points["takes"]["positive_flips"] > 0
    with browser_of(plays) as browser:
        page = browser.get(f"/items?gallery=plots&key={source[3].key}").text
        certificates = browser.get("/certificates?queryset=plots/takes").text
    assert "As text" in page
    assert ">captions<" in certificates.replace("\n", "")
    rollouts.rollback(plays, row.id)
    assert np.allclose(stored(plays), by_texts, atol=1e-6)
    by_key = search.search(plays, "plots", search.Query(key=source[3].key), 1)
    assert (by_key.model, by_key.hits[0].key) == ("captions", source[3].key)  # its own sentence


def test_what_comes_next_for_plots_is_their_features(context, plots, hotrefresh):
    """There is nothing of them to train on: what `next:` says is a command that works."""
    source = f"ptvd:{plots}"
    galleries.create_gallery(context, "plots", source, "test")
    first = guide.next_command(context, "plots")
    assert first == f"model features old ENCODER --data {source}"
    assert hotrefresh(*first.replace("ENCODER", "wl64").split())[0] == 0
    platform.work(context, embed.embed_gallery(context, "plots", "old").id)
    galleries.import_query_set(context, "plots", "takes", f"ptvd:{plots.parent / 'takes'}", split="test")
    then = guide.next_command(context, "plots")
    assert then == f"model features new ENCODER --data {source} --into old --split train"
    assert hotrefresh(*then.replace("ENCODER", "wl256").split())[0] == 0


def test_each_pair_needs_its_certificate(plays):
    towers.add_tower(plays, "captions", "clips")
    request = starting.StartRequest("plots", "clips", order="row")
    with pytest.raises(NotCertifiedError, match="'clips' was never measured"):
        starting.start(plays, request)
    with transaction(plays.engine) as connection:
        connection.exec_driver_sql("UPDATE query_set SET relevance = 'none' WHERE name = 'takes'")
    # Words alone would never do: the model's own pair is asked for, and the message says what it needs.
    with pytest.raises(
        NotCertifiedError, match=r"queries that are videos, and there are none .* --modality video"
    ):
        starting.start(plays, request)
    with transaction(plays.engine) as connection:
        connection.exec_driver_sql("UPDATE query_set SET relevance = 'label' WHERE name = 'takes'")
    assert certified(plays, "takes").verdict == "certified"
    with pytest.raises(
        NotCertifiedError, match="'captions', the tower of 'clips' for texts, was never measured"
    ):
        starting.start(plays, request)
    assert certified(plays, "said").verdict == "certified"
    starting.start(plays, request)
    # The old system's tower is needed to replay what was measured.
    with pytest.raises(ConflictError, match="query sets of videos"):
        towers.remove_tower(plays, "captions", "video")


def test_content_of_a_modality_that_is_embedded_is_embedded_again(plays, plots):
    towers.add_tower(plays, "captions", "clips")
    certified(plays, "takes"), certified(plays, "said")
    row = starting.start(plays, starting.StartRequest("plots", "clips", order="row"))
    platform.work(plays, row.id)
    source = list_items(f"ptvd:{plots}", "test").items
    texts = platform.write_csv(
        plots.parent / "better.csv",
        ("key", "text", "label"),
        [(source[3].key, "and there was light", "other")],
    )
    changed = items.update_items(plays, "plots", str(texts))
    # A rollback would return to the texts' embeddings, so it is a late item of the rollout that serves.
    assert (changed.items, changed.rollout_id) == (1, row.id)
    platform.work(plays, row.id)
    segments = [read_item(item.uri) for item in source]
    assert np.allclose(stored(plays), encoded(plays, "clips", segments), atol=1e-6)
    with transaction(plays.engine) as connection:
        gallery = gallery_queries.gallery_by_name(connection, "plots")
        item = gallery_queries.item_by_key(connection, gallery.id, source[3].key)
        uris = modality_queries.uris_of_item(connection, gallery.id, item.row)
    assert (list(uris), read_item(uris["text"])) == (["video", "text"], "and there was light")
    assert item.label == source[3].key  # a source of another modality says nothing of the item itself
    rollouts.rollback(plays, row.id)
    initial = row.id - 1
    platform.work(plays, initial)
    said = [each.sentence for each in segments]
    said[3] = "and there was light"
    assert np.allclose(stored(plays), encoded(plays, "captions", said), atol=1e-6)


def test_items_must_be_what_the_models_embed(plays, plots):
    """A new one without a text is refused while texts are embedded; one that has both is taken."""
    takes = f"ptvd:{plots.parent / 'takes'}"
    source = list_items(takes, "train").items[:2]
    with transaction(plays.engine) as connection:
        gallery = gallery_queries.gallery_by_name(connection, "plots")
    folder = plots.parent / "frames"
    platform.draw_pictures(folder, 3)
    columns = ("key", "clip", "text")
    rows = [("with", folder / "class-00", "a text"), ("without", folder / "class-01", "")]
    added = items.add_items(plays, "plots", str(platform.write_csv(plots.parent / "more.csv", columns, rows)))
    assert (added.items, added.reasons) == (1, {"no text": 1})
    platform.work(plays, added.rollout_id)
    assert np.allclose(stored(plays)[-1], encoded(plays, "captions", ["a text"])[0], atol=1e-6)
    with pytest.raises(UsageError, match=r"holds videos, but .* holds texts"):
        items.add_items(plays, "plots", f"ptvd-texts:{plots}", "train")
    assert gallery.modalities == ("video", "text")
    assert len(source) == 2


def test_pictures_get_texts_and_a_text_model(context, hotrefresh, tmp_path):
    """By commands: a gallery of pictures, texts that come later by key, and a model that embeds them instead."""
    pictures = sorted(platform.draw_pictures(tmp_path / "pictures", 2).rglob("*.png"))
    named = {f"{path.parent.name}/{path.name}": path for path in pictures}
    rows = [(key, path, f"number {at}", path.parent.name) for at, (key, path) in enumerate(named.items())]
    columns = ("key", "path", "text", "label")
    whole = platform.write_csv(tmp_path / "whole.csv", columns, rows)
    for modality in ("image", "text"):
        code, out, _ = hotrefresh(
            "gallery", "create", f"of-{modality}s", whole, "--modality", modality, "-o", "json"
        )
        shown = json.loads(hotrefresh("gallery", "show", f"of-{modality}s", "-o", "json")[1])
        other = {"image": "text", "text": "image"}[modality]
        assert (code, shown["modality"], shown["other_modalities"]) == (0, modality, [other])
        assert json.loads(out)["also"] == {other: len(pictures)}
    code, _, said = hotrefresh("gallery", "create", "x", whole, "--modality", "video")
    assert (code, "holds images and texts, no videos" in said) == (ExitCode.USAGE, True)

    platform.register_network(context, tmp_path, "seer", seed=0)
    assert hotrefresh("model", "import", "reader", "--wordllama", 64)[0] == 0
    galleries.create_gallery(context, "pics", str(tmp_path / "pictures"))
    platform.work(context, embed.embed_gallery(context, "pics", "seer").id)
    code, _, said = hotrefresh("model", "adapt", "seer", "reader", "--gallery", "pics")
    assert (code, "holds images" in said, "gallery update pics" in said) == (ExitCode.CONFLICT, True, True)
    part = platform.write_csv(
        tmp_path / "part.csv", ("key", "text"), [(key, text) for key, _, text, _ in rows[1:]]
    )
    code, out, _ = hotrefresh("gallery", "update", "pics", part, "-o", "json")
    # No model embeds texts yet: nothing is embedded anew.
    assert (code, json.loads(out)["items"], json.loads(out)["rollout_id"]) == (0, len(rows) - 1, None)
    code, _, said = hotrefresh("model", "adapt", "seer", "reader", "--gallery", "pics")
    assert (code, f"1 of the {len(rows)} items" in said) == (ExitCode.CONFLICT, True)
    rest = platform.write_csv(
        tmp_path / "rest.csv", ("key", "text"), [(key, text) for key, _, text, _ in rows[:1]]
    )
    assert hotrefresh("gallery", "update", "pics", rest)[0] == 0
    with transaction(context.engine) as connection:
        seer, reader = (model_queries.model_by_name(connection, name) for name in ("seer", "reader"))
    sample = model_service.paired_sample(context, seer, reader, "pics", 1000, 0, lambda done, total: None)
    texts = [read_item(uri) for uri in sample.uris]
    assert sorted(texts) == sorted(text for _, _, text, _ in rows)
    assert np.allclose(sample.new, encoded(context, "reader", texts), atol=1e-6)
    code, out, _ = hotrefresh(
        "queryset", "import", "of-images", "asked", whole, "--modality", "text", "-o", "json"
    )
    assert (code, json.loads(out)["modality"]) == (0, "text")
    code, out, _ = hotrefresh("queryset", "import", "of-images", "seen", whole, "-o", "json")
    assert (code, json.loads(out)["modality"]) == (0, "image")
    # Without --modality, what the gallery is, whatever comes first in the file.
    code, out, _ = hotrefresh("queryset", "import", "of-texts", "seen", whole, "-o", "json")
    assert (code, json.loads(out)["modality"]) == (0, "text")


def test_servers_with_a_part_each_answer_words_and_items_as_the_whole(plays, plots):
    """Through towers, and by the modality of what serves, wherever the refresh stands."""
    towers.add_tower(plays, "captions", "clips")
    certified(plays, "takes"), certified(plays, "said")
    keys = [item.key for item in list_items(f"ptvd:{plots}", "test").items]
    asked = [{"text": "the sea"}, {"key": keys[3]}, {"key": keys[30]}, {"text": "and it was so"}]
    with Cluster(plays, 2, rows=8) as cluster:

        def models() -> set[str]:
            at_the_same_place(cluster, "plots", keys[3])
            bodies = [("", {**each, "k": 7}) for each in asked] + [
                ("/batch", {"queries": asked[:3], "k": len(keys)})
            ]
            for path, body in bodies:
                whole, front = (
                    each.post(f"/search/plots{path}", json=body) for each in (cluster.whole, cluster.front)
                )
                assert (front.status_code, front.json()) == (200, whole.json()), body
            return {hit["model"] for answer in front.json()["answers"] for hit in answer["hits"]}

        assert models() == {"captions"}
        row = starting.start(plays, starting.StartRequest("plots", "clips", order="row", batch_size=8))
        advance.advance(plays, row.id)
        work_some(plays, row.id, 2)
        assert models() == {"captions", "clips"}
        platform.work(plays, row.id)
        assert models() == {"clips"}
