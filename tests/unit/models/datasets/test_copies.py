"""The copies: disjoint regions, disjoint roles, and edits that depend on the URI alone."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import ImageOps

from models.datasets import copies, list_items, modality_of, read_item
from models.errors import ItemError, UsageError


def items(variant, split="0"):
    return list_items(f"copies:{variant}", split).items


def regions(variant, split="0"):
    return {item.label for item in items(variant, split)}


def test_regions_share_no_pixel_and_are_large_enough():
    boxes = copies._regions()
    assert len(boxes) == 116
    for (one, a), (other, b) in combinations(boxes.values(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert one != other or apart
    assert min(min(x1 - x0, y1 - y0) for _, (x0, y0, x1, y1) in boxes.values()) >= 150


@pytest.mark.parametrize("split", copies.SPLITS)
def test_a_seed_gives_every_region_one_role(split):
    references, strangers, hosts, background = copies._roles(split)
    together = references + strangers + hosts + background
    assert sorted(together) == sorted(copies._regions())
    assert regions("references", split) == set(references)
    assert regions("background", split) == set(background)
    asked = regions("queries", split)
    assert asked <= set(references) | set(strangers)
    assert (len(references), len(background)) == (64, 16)
    assert (len(asked & set(references)), len(asked & set(strangers))) == (24, 24)


def test_seeds_differ_and_a_query_is_there_for_each_edit():
    assert len({frozenset(regions("references", split)) for split in copies.SPLITS}) == 3
    counts = Counter(item.attributes["edit"] for item in items("queries"))
    assert counts == dict.fromkeys(copies.EDITS, 48)
    assert modality_of("copies:queries") == "image"


@pytest.mark.parametrize("edit", copies.EDITS)
def test_an_edit_is_drawn_from_its_uri_alone_and_changes_the_picture(edit):
    uri = f"copy:0/coffee-3/{edit}"
    picture, original = read_item(uri), read_item("copy:0/coffee-3/original")
    assert picture.mode == original.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(read_item(uri)))
    assert picture.size != original.size or not np.array_equal(np.asarray(picture), np.asarray(original))
    if edit != "flip":  # nothing is drawn for it
        again = read_item(uri.replace(":0", ":1"))
        assert again.size != picture.size or not np.array_equal(np.asarray(again), np.asarray(picture))


def test_edits_do_what_they_are_called():
    original = read_item("copy:0/coffee-3/original")
    assert np.array_equal(
        np.asarray(ImageOps.mirror(read_item("copy:0/coffee-3/flip"))), np.asarray(original)
    )
    crop = np.asarray(read_item("copy:0/coffee-3/crop"))
    share = crop.shape[0] * crop.shape[1] / (original.width * original.height)
    assert 0.33 < share < 0.62
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(original), crop.shape)
    assert (windows == crop).all(axis=(3, 4, 5)).any()
    assert read_item("copy:0/coffee-3/overlay").width == 600


@pytest.mark.parametrize(
    "uri", ["copy:9/coffee-3/crop", "copy:0/coffee-99/crop", "copy:0/coffee-3/melt", "copy:", "copy:0"]
)
def test_what_is_not_there_is_the_items_fault(uri):
    with pytest.raises(ItemError, match="there is no copy"):
        read_item(uri)


def test_unknown_variants_and_splits_are_named():
    with pytest.raises(UsageError, match="copies:references"):
        list_items("copies:originals")
    with pytest.raises(UsageError, match="no split '7'"):
        list_items("copies:queries", "7")
    with pytest.raises(UsageError, match="write copies:references or"):
        copies.list_items("originals")


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(copies, "find_spec", lambda name: None)
    for kept in (copies._folder, copies._regions, copies._roles):
        kept.cache_clear()
    with pytest.raises(UsageError, match=r"hotrefresh\[copies\]"):
        list_items("copies:references")
