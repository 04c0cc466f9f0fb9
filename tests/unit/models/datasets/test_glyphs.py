import numpy as np
import pytest

from models.datasets import glyphs, list_items
from models.errors import ItemError, UsageError


def labels(split):
    return {item.label for item in glyphs.list_items(split)}


def faces(split):
    return {item.key.partition("/")[0] for item in glyphs.list_items(split)}


def test_the_gallery_is_large_enough_for_the_demos_claims():
    assert len(glyphs.list_items("gallery")) >= 20_000
    assert len(labels("gallery")) >= 2_000
    assert len(glyphs.list_items("queries")) > 500


def test_queries_are_unseen_classes_in_an_unseen_face():
    assert faces("queries") == {glyphs.UNSEEN_FACE}
    assert not labels("queries") & labels("train")
    for split in ("gallery", "train", "old-train"):
        assert glyphs.UNSEEN_FACE not in faces(split)


def test_every_query_has_a_relevant_item_in_the_gallery():
    assert labels("queries") <= labels("gallery")


def test_the_old_models_classes_are_a_subset_of_the_new_ones():
    everything, train, old = labels("gallery"), labels("train"), labels("old-train")
    assert old < train < everything
    assert len(train) == pytest.approx(0.5 * len(everything), abs=1)
    assert len(old) == pytest.approx(0.3 * len(everything), abs=1)


def test_keys_are_unique_and_a_class_has_one_picture_a_face():
    items = glyphs.list_items("gallery")
    assert len({item.key for item in items}) == len(items)
    assert len({(item.key.partition("/")[0], item.label) for item in items}) == len(items)


def test_capital_a_in_latin_greek_and_cyrillic_is_one_class():
    everything = glyphs.catalogue()
    assert 0x41 in everything.classes
    assert not {0x391, 0x410} & set(everything.classes)


def test_most_faces_do_not_confuse_what_is_two_classes():
    everything = glyphs.catalogue()
    seen, equal = {}, 0
    for face, label, pixels in zip(everything.faces, everything.classes, everything.pixels, strict=True):
        equal += seen.setdefault((face, pixels.tobytes()), label) != label
    assert equal < 0.03 * len(everything.faces)


def test_an_item_reads_as_the_very_picture_that_was_catalogued():
    items = glyphs.list_items("queries")[::40]
    pixels, named = glyphs.pictures("queries")
    for place, item in enumerate(items):
        picture = glyphs.read(item.uri)
        assert (picture.mode, picture.size) == ("L", (32, 32))
        assert np.array_equal(np.asarray(picture), pixels[40 * place])
        assert named[40 * place] == item.label


def test_every_picture_has_ink():
    assert glyphs.catalogue().pixels.max(axis=(1, 2)).min() > 0


def test_the_listing_is_the_registered_datasets():
    listing = list_items("glyphs", "queries")
    assert listing.items == glyphs.list_items("queries")
    assert listing.rejected == []


def test_no_split_named_means_the_gallery():
    assert glyphs.list_items() == glyphs.list_items("gallery")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("glyph:DejaVuSans", "malformed"),
        ("glyph:DejaVuSans/41", "malformed"),
        ("glyph:DejaVuSans/U+XYZ", "malformed"),
        ("glyph:DejaVuSans/U+110000", "malformed"),
        ("verse:DejaVuSans/U+0041", "malformed"),
        ("glyph:Comic/U+0041", "missing"),
        ("glyph:DejaVuSans/U+E123", "missing"),
        ("glyph:DejaVuSans/U+0020", "empty"),
    ],
)
def test_what_is_no_glyph_is_an_item_error_with_its_reason(uri, reason):
    with pytest.raises(ItemError) as caught:
        glyphs.read(uri)
    assert caught.value.reason == reason


def test_an_unknown_split_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match="old-train"):
        glyphs.list_items("test")
