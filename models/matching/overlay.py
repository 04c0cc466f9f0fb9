"""Pictures pasted into pictures: where they lie, and which find is believed.

A detector is anything with `find`; a trained one gets in by that alone. The one here looks for an upright rectangle whose four
sides are steps of brightness: what pasting leaves behind, and what natural pictures seldom have on all four sides at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.matching.local import opencv, reduced

MOST_AREA = 0.85
WIDEST_ASPECT = 4.0

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Box:
    """Pixels `left <= x < right`, `top <= y < bottom`, with a confidence of 0 to 1."""

    left: int
    top: int
    right: int
    bottom: int
    confidence: float


class OverlayDetector(Protocol):
    """Finds pasted pictures."""

    def find(self, picture: Image.Image) -> list[Box]:
        """Boxes within the picture, in any order; it need not apply the rules of `best_overlay`."""
        ...


def best_overlay(boxes: Iterable[Box], width: int, height: int, confidence: float) -> Box | None:
    """The most confident of the boxes that can be an overlay; of equals the larger one, then the upper left one.

    Refused are confidences not over `confidence`, empty boxes, boxes that cover more than 85 % of the picture, and boxes whose
    width over height lies outside [1/4, 4].
    """

    def can_be(box: Box) -> bool:
        w, h = box.right - box.left, box.bottom - box.top
        return (
            box.confidence > confidence
            and min(w, h) > 0
            and w * h <= MOST_AREA * width * height
            and w <= WIDEST_ASPECT * h
            and h <= WIDEST_ASPECT * w
        )

    def rank(box: Box) -> tuple[float, ...]:
        area = (box.right - box.left) * (box.bottom - box.top)
        return box.confidence, area, -box.top, -box.left

    return max(filter(can_be, boxes), key=rank, default=None)


def overlay_of(picture: Image.Image, detector: OverlayDetector, confidence: float) -> Image.Image | None:
    """The picture pasted into this one, or None where none is believed."""
    box = best_overlay(detector.find(picture), *picture.size, confidence)
    return None if box is None else picture.crop((box.left, box.top, box.right, box.bottom))
