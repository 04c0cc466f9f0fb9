"""Pasted pictures: which boxes are believed, and that rectangles are found where they were pasted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.matching.overlay import Box, RectangleFinder, best_overlay, overlay_of
from tests.unit.models.matching.pictures import region


@pytest.mark.parametrize(
    ("box", "believed"),
    [
        ((0, 0, 85, 100), True),  # 85 % of the area
        ((0, 0, 86, 100), False),
        ((0, 0, 80, 20), True),  # four times as wide
        ((0, 0, 81, 20), False),
        ((0, 0, 20, 80), True),
        ((0, 0, 20, 81), False),
        ((10, 10, 10, 50), False),  # empty
        ((40, 40, 30, 30), False),
    ],
)
def test_a_box_is_neither_nearly_everything_nor_a_strip(box, believed):
    assert (best_overlay([Box(*box, 0.9)], 100, 100, 0.5) is not None) == believed


def test_the_most_confident_of_the_believable_wins():
    boxes = [Box(0, 0, 99, 99, 0.99), Box(0, 0, 30, 30, 0.7), Box(5, 5, 60, 60, 0.8), Box(5, 5, 50, 50, 0.8)]
    assert best_overlay(boxes, 100, 100, 0.5) == boxes[2]
    assert best_overlay(boxes[::-1], 100, 100, 0.5) == boxes[2]
    assert best_overlay(boxes, 100, 100, 0.8) is None
    assert best_overlay([], 100, 100, 0.0) is None


class Fixed:
    """Stands for a trained detector: two boxes, the better one is nearly everything."""

    def find(self, picture):
        assert picture.size == (200, 100)
        return [Box(0, 0, 200, 99, 0.9), Box(20, 10, 80, 60, 0.6)]


def test_any_detector_takes_part_and_its_box_is_cut_out():
    picture = Image.fromarray(np.arange(20_000, dtype=np.uint32).reshape(100, 200).astype(np.uint8))
    cut = overlay_of(picture, Fixed(), 0.5)
    assert np.array_equal(np.asarray(cut), np.asarray(picture)[10:60, 20:80])
    assert overlay_of(picture, Fixed(), 0.6) is None


@pytest.mark.parametrize(
    ("host", "inset", "box"),
    [
        ("coffee-3", "astronaut-5", (120, 90, 360, 330)),
        ("grass-3", "coffee-3", (60, 200, 300, 440)),
        ("ihc-1", "motorcycle_left-2", (300, 40, 520, 260)),
    ],
)
def test_a_pasted_picture_is_found_within_three_pixels_of_the_reduced_one(host, inset, box):
    picture = region(host).resize((600, 600))
    picture.paste(region(inset).resize((box[2] - box[0], box[3] - box[1])), box[:2])
    found = best_overlay(RectangleFinder().find(picture), *picture.size, 0.5)
    assert found is not None
    assert np.abs(np.subtract((found.left, found.top, found.right, found.bottom), box)).max() <= 6


@pytest.mark.parametrize(
    "name", ["astronaut-5", "coffee-3", "grass-3", "ihc-1", "moon-1", "hubble_deep_field-5"]
)
def test_pictures_with_nothing_pasted_are_left_whole(name):
    assert overlay_of(region(name), RectangleFinder(), 0.5) is None


def test_a_plain_picture_has_no_rectangle():
    assert RectangleFinder().find(Image.new("L", (400, 400), 90)) == []
