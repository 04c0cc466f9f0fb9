"""Moving glyphs: the same everywhere, whole in every frame, moving as they say, classes and faces apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from models.datasets import glyphs
from models.datasets.clips import read_clip, write_gif
from models.datasets.moving_glyphs import MOTIONS, list_items, path, read
from models.errors import ItemError, UsageError


def test_splits_have_their_classes_and_faces():
    gallery, queries, train = (list_items(split) for split in ("gallery", "queries", "train"))
    assert list_items() == gallery
    assert (len(gallery), len(queries), len(train)) == (480, 80, 240)
    labels = [{item.label for item in items} for items in (gallery, queries, train)]
    assert [len(each) for each in labels] == [40, 20, 20]
    assert not labels[1] & labels[2]
    assert labels[1] | labels[2] == labels[0]
    assert not {i.attributes["face"] for i in gallery} & {i.attributes["face"] for i in queries}
    assert Counter(i.attributes["motion"] for i in queries) == dict.fromkeys(MOTIONS, 20)
    assert len({i.key for i in gallery + queries}) == 560
    with pytest.raises(UsageError, match="no split"):
        list_items("all")


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_frame_holds_the_whole_glyph_where_the_path_says(motion):
    uri = f"moving-glyph:DejaVuSans/U+0041/{motion}"
    frames, places = read(uri), path(uri)
    assert (frames.dtype, frames.shape) == (np.uint8, (32, 64, 64, 1))
    picture = np.asarray(glyphs.read("glyph:DejaVuSans/U+0041"))
    for frame, (left, top) in zip(frames, places, strict=True):
        np.testing.assert_array_equal(frame[top : top + 32, left : left + 32, 0], picture)
        assert frame.sum() == picture.sum()
    moved = np.abs(np.diff(places, axis=0)).sum(axis=0) > 0
    assert moved.tolist() == {"across": [True, False], "down": [False, True]}.get(motion, [True, True])
    np.testing.assert_array_equal(frames, read(uri))


def test_paths_differ_between_clips_and_stay_within_the_speed():
    uris = [item.uri for item in list_items("queries")]
    paths = np.stack([path(uri) for uri in uris])
    assert len({p.tobytes() for p in paths}) == len(uris)
    assert paths.min() >= 0
    assert paths.max() <= 32
    assert np.abs(np.diff(paths, axis=1)).max() <= 4  # three pixels, and one of rounding


def test_what_is_no_moving_glyph_is_refused():
    for uri, reason in (
        ("moving-glyph:DejaVuSans/U+0041/fly", "malformed"),
        ("moving-glyph:U+0041/circle", "missing"),
        ("moving-glyph:NoFace/U+0041/circle", "missing"),
        ("moving-glyph:DejaVuSans/U+0020/circle", "empty"),
    ):
        with pytest.raises(ItemError) as refused:
            read(uri)
        assert (uri, refused.value.reason) == (uri, reason)


def test_a_clip_goes_through_a_gif_unchanged(tmp_path):
    frames = read("moving-glyph:DejaVuSans/U+0041/diagonal")
    write_gif(tmp_path / "a.gif", frames)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.gif").frames, np.repeat(frames, 3, axis=3))
