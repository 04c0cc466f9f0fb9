"""Local features: RootSIFT by its formula, reduction, and the mirror against SIFT of the really mirrored picture."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from models.errors import UsageError
from models.matching import local
from models.matching.local import Features, mirror, reduced, root_sift
from models.matching.matcher import match_count
from tests.unit.models.matching.pictures import features, region, sift

PICTURES = ("astronaut-5", "coffee-3", "ihc-1", "motorcycle_left-2", "grass-3")


def test_root_sift_is_its_formula_in_whole_numbers_of_length_about_255():
    raw = np.random.default_rng(0).integers(0, 200, (50, 128)).astype(np.float32)
    expected = [[round(255 * (v / sum(row)) ** 0.5) for v in row] for row in raw.tolist()]
    got = root_sift(raw)
    assert got.dtype == np.uint8
    assert got.tolist() == expected
    assert np.abs(np.linalg.norm(got.astype(float), axis=1) - 255).max() < 2
    assert root_sift(np.zeros((1, 128), np.float32)).tolist() == [[0] * 128]
    assert root_sift(np.eye(1, 128, dtype=np.float32))[0, 0] == 255
    with pytest.raises(ValueError, match="none is negative"):
        root_sift(-raw)


def test_the_mirror_reverses_rows_of_four_cells_and_the_turn_of_angles_and_undoes_itself():
    named = np.array([[cell * 8 + angle for cell in range(16) for angle in range(8)]], np.uint8)
    rows = [12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]
    expected = [cell * 8 + angle for cell in rows for angle in (0, 7, 6, 5, 4, 3, 2, 1)]
    assert mirror(named)[0].tolist() == expected
    assert np.array_equal(mirror(mirror(named)), named)


@pytest.mark.parametrize("name", PICTURES)
def test_mirrored_descriptors_are_those_of_the_mirrored_picture(name):
    """Stated overlap: at least 85 % of the mirrored picture's points have, at the mirrored place, a descriptor whose cosine with
    the permuted one is over 0.97; without the permutation under 15 % do."""
    picture = region(name)
    width = reduced(picture).width
    ours, theirs = features(name), sift()(ImageOps.mirror(picture))

    def overlap(descriptors):
        places = ours.positions * [-1, 1] + [width - 1, 0]
        near = np.abs(theirs.positions[:, None] - places[None]).max(axis=2) < 1.0
        a, b = (
            d.astype(float) / np.linalg.norm(d, axis=1, keepdims=True)
            for d in (theirs.descriptors, descriptors)
        )
        return ((near * (a @ b.T)).max(axis=1) > 0.97).mean()

    assert len(theirs) > 50
    assert overlap(mirror(ours.descriptors)) >= 0.85
    assert overlap(ours.descriptors) < 0.15
    assert match_count(theirs, ours.mirrored()) > 5 * match_count(theirs, ours)


def test_large_pictures_are_reduced_to_a_short_side_of_300_and_small_ones_are_left_alone():
    assert reduced(Image.new("RGB", (1200, 901))).size == (399, 300)
    assert reduced(Image.new("L", (450, 1800))).size == (300, 1200)
    small = Image.new("RGB", (299, 1000))
    assert reduced(small) is small


def test_a_picture_without_structure_has_no_points_and_is_not_used():
    found = sift()(Image.new("RGB", (300, 300), (90, 90, 90)))
    assert len(found) == 0
    assert not found.usable
    assert not Features(np.zeros((9, 2), np.float32), np.zeros((9, 128), np.uint8)).usable
    assert Features(np.zeros((10, 2), np.float32), np.zeros((10, 128), np.uint8)).usable


def test_points_of_any_mode_are_those_of_the_grey_picture():
    picture = region("coffee-3")
    for mode in ("L", "RGBA", "P"):
        assert len(sift()(picture.convert(mode))) > 50
    assert np.array_equal(sift()(picture.convert("RGBA")).descriptors, features("coffee-3").descriptors)


def test_features_of_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="no features"):
        Features(np.zeros((2, 2), np.float32), np.zeros((3, 128), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        Features(np.zeros((2, 2), np.float32), np.zeros((2, 128), np.float32))


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"hotrefresh\[matching\]"):
        local.Sift()
