"""Folders and manifests of clips: what is listed, how it is labelled, thinned and digested, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.datasets import clip_files, content_digest, list_items, modality_of, read_item
from models.datasets.clips import Limits, read_clip, write_gif
from models.errors import ItemError, UsageError

FRAMES = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(12, axis=1).repeat(20, axis=2) * 20


def folder_of_frames(path, frames=FRAMES):
    path.mkdir(parents=True)
    for at, frame in enumerate(frames):
        Image.fromarray(frame[..., 0]).save(path / f"{at:02}.png")


@pytest.fixture
def clips(tmp_path):
    place = tmp_path / "clips"
    (place / "cats").mkdir(parents=True)
    write_gif(place / "cats" / "walks.gif", FRAMES)
    folder_of_frames(place / "dogs" / "runs")
    write_gif(place / "loose ü.GIF", FRAMES[:3])
    (place / "cats" / "broken.mp4").write_bytes(b"no film at all")
    (place / "cats" / "notes.txt").write_text("no clip")
    return place


def test_every_file_and_every_folder_of_frames_is_a_clip_labelled_by_its_folder(clips):
    listing = list_items(f"clips:{clips}")
    found = {item.key: item.label for item in listing.items}
    assert found == {
        "cats/broken.mp4": "cats",
        "cats/walks.gif": "cats",
        "dogs/runs": "dogs",
        "loose ü.GIF": None,
    }
    assert (listing.ignored, modality_of(f"clips:{clips}")) == (1, "video")
    content = {item.key: read_item(item.uri) for item in listing.items if "broken" not in item.key}
    assert {key: frames.shape for key, frames in content.items()} == {
        "cats/walks.gif": (10, 12, 20, 3), "dogs/runs": (10, 12, 20, 3), "loose ü.GIF": (3, 12, 20, 3),
    }  # fmt: skip
    assert np.array_equal(content["dogs/runs"][:, 0, 0, 0], FRAMES[:, 0, 0, 0])


def test_the_same_folder_without_the_word_is_one_of_pictures(clips):
    assert modality_of(str(clips)) == "image"
    assert len(list_items(str(clips)).items) == 12


def test_what_is_no_clip_is_an_item_error_and_a_folder_without_any_a_usage_error(clips, tmp_path):
    for name, reason in (
        ("cats/broken.mp4", "corrupt"),
        ("gone.gif", "missing"),
        ("cats/notes.txt", "unsupported"),
    ):
        with pytest.raises(ItemError) as error:
            read_item(clip_files.uri_of(clips / name))
        assert error.value.reason == reason
    with pytest.raises(ItemError):
        read_item("clip:%00")
    (tmp_path / "empty").mkdir()
    for source, said in ((f"clips:{tmp_path}/empty", "no clip in"), (f"clips:{tmp_path}/none", "no folder")):
        with pytest.raises(UsageError, match=said):
            list_items(source)
    with pytest.raises(UsageError, match="clips:FOLDER"):
        list_items(str(tmp_path / "none"))


def test_a_long_or_large_clip_is_thinned_while_it_is_decoded(tmp_path):
    long = np.arange(300, dtype=np.int64) % 250
    write_gif(
        tmp_path / "long.gif", np.broadcast_to(long[:, None, None, None], (300, 8, 16, 1)).astype(np.uint8)
    )
    thinned = read_clip(tmp_path / "long.gif", Limits(kept_frames=128, kept_edge=8)).frames
    assert thinned.shape == (75, 4, 8, 3)  # every second is more than 128
    assert thinned[:3, 0, 0, 0].tolist() == [0, 4, 8]


def test_thinned_frames_count_as_held(tmp_path):
    turning = np.arange(300, dtype=np.int64)[:, None, None, None] % 2 * 255  # a GIF keeps equal frames as one
    write_gif(tmp_path / "long.gif", np.broadcast_to(turning, (300, 64, 64, 1)).astype(np.uint8))
    with pytest.raises(ItemError, match="more than"):
        read_clip(tmp_path / "long.gif", Limits(decoded_bytes=40 * 64 * 64 * 3))
    held = read_clip(tmp_path / "long.gif", Limits(decoded_bytes=40 * 64 * 64 * 3, kept_frames=32))
    assert len(held.frames) <= 32
    with pytest.raises(ItemError):
        read_clip(tmp_path / "long.gif", Limits(frames=100, kept_frames=32))


def test_a_digest_tells_clips_apart_and_knows_an_equal_one(clips, tmp_path):
    uris = {item.key: item.uri for item in list_items(f"clips:{clips}").items}
    digests = {key: content_digest(uri) for key, uri in uris.items()}
    assert len(set(digests.values())) == 4
    folder_of_frames(tmp_path / "again")
    assert content_digest(clip_files.uri_of(tmp_path / "again")) == digests["dogs/runs"]
    (tmp_path / "again" / "03.png").unlink()
    assert content_digest(clip_files.uri_of(tmp_path / "again")) != digests["dogs/runs"]
    assert content_digest("moving-glyph:DejaVuSans/U+0041/circle") != content_digest(
        "moving-glyph:DejaVuSans/U+0041/down"
    )


def test_a_manifest_names_clips_below_its_folder(clips):
    (clips / "all.csv").write_text(
        "key,clip,label,tenant\na,cats/walks.gif,cat,zoo\nb,dogs/runs,dog,\nc,../x.gif,,\nd,gone.gif,,\n"
    )
    listing = list_items(str(clips / "all.csv"))
    assert [(i.key, i.label, dict(i.attributes)) for i in listing.items] == [
        ("a", "cat", {"tenant": "zoo"}),
        ("b", "dog", {}),
    ]
    assert [len(read_item(i.uri)) for i in listing.items] == [10, 10]
    assert [(r.key, r.reason.partition(":")[0]) for r in listing.rejected] == [
        ("c", "leaves the manifest's folder"), ("d", "missing"),
    ]  # fmt: skip
    assert modality_of(str(clips / "all.csv")) == "video"


def test_moving_glyphs_are_a_source():
    assert modality_of("moving-glyphs") == "video"
    items = list_items("moving-glyphs", "queries").items
    assert len(items) == 80
    assert read_item(items[0].uri).shape == (32, 64, 64, 1)
