"""A gallery of videos through the whole platform: embedded, upgraded by a worker, searched, shown, with flips a query clip."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from models.artifact import save_artifact
from models.datasets import clip_files, list_items, read_item
from models.datasets.clips import write_gif
from models.encoders import architecture_module
from models.encoders.videos import VideoPreprocessing
from models.errors import UsageError
from orchestrator.dashboard.pictures import thumbnail
from orchestrator.errors import ConflictError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.service import embed, finish, galleries, models
from orchestrator.service.listings import view
from orchestrator.service.search import Query, search
from orchestrator.serving.embedding import encode_uris
from orchestrator.serving.matrix import load_matrix
from tests.engine import platform

SEEN = VideoPreprocessing(frames=8, size=16, mode="L")


def register(context, folder, name, moved=0.0):
    """A random r2plus1d; `moved`: the same network with its weights moved by so many times their size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture_module("r2plus1d").build({"width": 2}, 16, SEEN)
        with torch.no_grad():
            for weight in network.parameters():
                weight += moved * weight.abs().mean() * torch.randn_like(weight)
    save_artifact(
        folder / name, network.state_dict(), kind="encoder", name=name, architecture="r2plus1d", options={"width": 2},
        modality="video", preprocessing=asdict(SEEN), dim=16,
    )  # fmt: skip
    models.import_model(context, folder / name, name)


@pytest.fixture
def clips(context, tmp_path):
    """Gallery `pics` of 60 GIFs and a broken one, embedded by `old`; query set `asked` of 80 moving glyphs; model `kin`."""
    place = tmp_path / "clips"
    for item in list_items("moving-glyphs", "gallery").items[::8]:
        (place / item.label).mkdir(parents=True, exist_ok=True)
        write_gif(place / item.label / f"{item.key.replace('/', '-')}.gif", read_item(item.uri))
    whole = sorted(place.rglob("*.gif"))[5].read_bytes()
    (place / "broken.gif").write_bytes(whole[: len(whole) // 2])
    galleries.create_gallery(context, "pics", f"clips:{place}")
    galleries.import_query_set(context, "pics", "asked", "moving-glyphs", split="queries")
    register(context, tmp_path, "old")
    register(context, tmp_path, "kin", moved=0.05)
    assert platform.work(context, embed.embed_gallery(context, "pics", "old").id).state == "finalized"
    return place


def test_a_gallery_of_videos_is_upgraded_by_a_worker_with_flips_of_every_query_clip(context, clips):
    platform.certify_by_hand(context, "kin")
    started = platform.start(context, "kin")
    assert platform.work(context, started.id).state == "finalizable"
    right = _right_before_and_after(context, started)
    wanted = {(key, "negative" if was else "positive") for key, (was, is_) in right.items() if was != is_}
    flips = view(context, "flip_items", rollout=started.id, queryset="asked", k=1)
    open_now = [f for f in flips if f["healed_seq"] is None and f["reference"] == "old_system"]
    assert {(f["query"], f["kind"]) for f in open_now} == wanted
    assert wanted, "models that answer every query alike would show nothing"
    last = view(context, "flip_summary", rollout=started.id, queryset="asked")
    assert {row["slice"] for row in last} >= {"all", "motion=across", "motion=circle"}
    assert finish.finalize(context, started.id).state == "finalized"

    first = sorted(clips.rglob("*-*.gif"))[3]
    for query in (Query(video=first), Query(key=first.relative_to(clips).as_posix())):
        answer = search(context, "pics", query, 3)
        assert answer.model == "kin"
        assert answer.hits[0].key == first.relative_to(clips).as_posix()
        assert answer.hits[0].score == pytest.approx(1, abs=1e-3)


def _right_before_and_after(context, row):
    """Query key -> whether each model, for queries and gallery alike, finds a clip of its label first, by a plain loop."""
    with context.engine.connect() as connection:
        gallery = gallery_queries.gallery_by_name(connection, "pics")
        labels = dict(gallery_queries.labels_of_gallery(connection, gallery.id))
        old, new = (model_queries.model_by_name(connection, name) for name in ("old", "kin"))
        stored = load_matrix(connection, gallery.id, before=row.id), load_matrix(connection, gallery.id)
    asked = [each for each in list_items("moving-glyphs", "queries").items if each.label in labels.values()]
    found = {each.key: [] for each in asked}
    for model, matrix in zip((old, new), stored, strict=True):
        vectors, failed = encode_uris(context.encoder(model), [each.uri for each in asked])
        assert not failed
        for each, vector in zip(asked, vectors, strict=True):
            scores = {at: float(matrix.vectors[at] @ vector) for at in labels}
            found[each.key].append(labels[max(scores, key=scores.get)] == each.label)
    return found


def test_a_clip_that_cannot_be_decoded_is_quarantined_and_the_rest_goes_on(context, clips):
    [bad] = view(context, "errors", gallery="pics")
    assert (bad["item"], bad["class"]) == ("broken.gif", "corrupt")


def test_a_clip_is_shown_as_a_strip_of_six_frames_in_the_order_of_time(clips):
    first = sorted(clips.rglob("*-*.gif"))[0]
    picture = Image.open(io.BytesIO(thumbnail(clip_files.uri_of(first))))
    assert (picture.format, picture.size) == ("PNG", (6 * 64 + 5 * 2, 64))
    frames = read_item(clip_files.uri_of(first))
    shown = np.asarray(picture)
    for place, frame in enumerate((2, 8, 13, 18, 24, 29)):
        assert np.array_equal(shown[:, place * 66 : place * 66 + 64], frames[frame])


def test_models_and_queries_of_another_kind_are_refused(context, clips, tmp_path):
    platform.register_network(context, tmp_path, "pictures", seed=0)
    with pytest.raises(ConflictError, match="embeds images"):
        platform.start(context, "pictures")
    with pytest.raises(ConflictError, match="has no tower for texts"):
        search(context, "pics", Query(text="a cat"), 3)
    with pytest.raises(UsageError, match="cannot be embedded"):
        search(context, "pics", Query(video=clips / "broken.gif"), 3)


def test_a_backbone_is_pretrained_and_trained_on_by_commands(hotrefresh, tmp_path):
    for at, item in enumerate(list_items("moving-glyphs", "train").items[:12:2]):
        folder = tmp_path / "few" / f"class-{at % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        write_gif(folder / f"{at}.gif", read_item(item.uri))
    data = ("--data", f"clips:{tmp_path}/few", "--threads", 1)
    small = ("--size", 16, "--mode", "L")
    code, said, narrated = hotrefresh(
        "model", "pretrain", "base", *data, *small, "--width", 2, "--epochs", 1, "--batch-size", 3
    )
    assert code == 0, narrated
    assert "base: videos, r2plus1d, 16 dimensions, 6 clips" in narrated
    assert "model train NAME --init base" in narrated
    code, _, narrated = hotrefresh(
        "model", "train", "v2", *data, "--init", "base", "--network", "width=2", "--epochs", 1, "--dim", 8
    )
    assert code == 0, narrated
    assert "v2: videos, r2plus1d, 8 dimensions" in narrated
    code, said, _ = hotrefresh("model", "show", "v2", "-o", "json")
    manifest = json.loads(said)["manifest"]
    assert (manifest["preprocessing"]["size"], manifest["preprocessing"]["mode"]) == (16, "L"), (
        "as the first's"
    )
    for wrong, words in (
        (("pretrain", "x", "--data", "glyphs"), "trained on videos"),
        (("pretrain", "x", *data, "--rules", "other"), "sound, published, released"),
        (("pretrain", "x", *data, "--frames", 4), "8 or more"),
        (("train", "x", *data, "--architecture", "convnet"), "r2plus1d, frame_vit"),
        (("train", "x", "--data", "glyphs", "--split", "train", "--frames", 4), "leave it out"),
        (("train", "x", *data, "--init", "base"), "do not fit the network"),
    ):
        code, _, narrated = hotrefresh("model", *wrong)
        assert code == 2, (wrong, narrated)
        assert words in " ".join(narrated.split()), (wrong, narrated)
