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
U8 = npt.NDArray[np.uint8]
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


@dataclass(frozen=True)
class RectangleFinder:
    """Upright rectangles whose sides are straight steps of brightness; no training.

    The picture is reduced to a short side of 300. A pixel is on a step where it differs from its neighbour, in some channel, by
    more than most pixels of the picture do. Columns and rows with long unbroken runs of steps, longer than those five pixels
    beside them, are candidates for sides. The confidence of a rectangle of two columns and two rows is

        smallest share of steps along one of its sides - the larger of (share along the prolongations of its sides,
                                                                       share along lines five pixels beside its sides)

    for lines of the scene go on, while the sides of a pasted picture end at its corners, and a texture has steps everywhere.

    Attributes:
        step, highest: bounds, of 255, of how much a step is.
        calm: share of the pixels that are not on a step, between these bounds.
        smallest: side of a rectangle, as a share of the picture's short side.
        shortest: of a run, in the same way.
        lines: candidates kept in each direction, longest runs first.
    """

    step: float = 10.0
    highest: float = 40.0
    calm: float = 0.85
    smallest: float = 0.2
    shortest: float = 0.12
    lines: int = 16

    def find(self, picture: Image.Image) -> list[Box]:
        """The most confident rectangle, alone in its list; none where no four lines make one."""
        small = reduced(picture)
        pixels = np.asarray(small.convert("RGB"), np.float32)
        across, down = self._steps(pixels), self._steps(pixels.transpose(1, 0, 2))
        xs, ys = self._lines(across), self._lines(down)
        if len(xs) < 2 or len(ys) < 2:
            return []
        (lefts, rights), (tops, bottoms) = _pairs(xs), _pairs(ys)
        vertical, horizontal = _Sums(across), _Sums(down)
        x0, y0 = (each.reshape(-1) for each in np.meshgrid(lefts, tops, indexing="ij"))
        x1, y1 = (each.reshape(-1) for each in np.meshgrid(rights, bottoms, indexing="ij"))
        sides = (
            (vertical, x0, y0, y1),
            (vertical, x1, y0, y1),
            (horizontal, y0, x0, x1),
            (horizontal, y1, x0, x1),
        )
        inside = np.min([sums.share(at, low, high) for sums, at, low, high in sides], axis=0)
        beyond = np.mean([sums.beyond(at, low, high) for sums, at, low, high in sides], axis=0)
        beside = np.mean([sums.beside(at, low, high) for sums, at, low, high in sides], axis=0)
        confidence = inside - np.maximum(beyond, beside)
        least = self.smallest * min(small.size)
        confidence[(x1 - x0 < least) | (y1 - y0 < least)] = 0
        # Of equals the largest: a line within a pasted picture makes a smaller rectangle with three of its sides.
        best = int(np.lexsort(((x1 - x0) * (y1 - y0), np.round(confidence, 2)))[-1])
        scale = picture.width / small.width
        left, top, right, bottom = (round(float(side[best]) * scale) for side in (x0, y0, x1, y1))
        return [Box(left, top, right, bottom, float(np.clip(confidence[best], 0, 1)))]

    def _steps(self, pixels: F32) -> U8:
        """(height, width) uint8: 1 where a pixel differs from its left neighbour, spread by one pixel to both sides."""
        cv2 = opencv()
        change = np.zeros(pixels.shape[:2], np.float32)
        change[:, 1:] = np.abs(np.diff(pixels, axis=1)).max(axis=2)
        step = min(max(float(np.percentile(change, 100 * self.calm)), self.step), self.highest)
        return np.asarray(cv2.dilate((change >= step).astype(np.uint8), np.ones((1, 3), np.uint8)))

    def _lines(self, steps: U8) -> I64:
        """Columns with more pixels in long runs than those beside them, at least 4 pixels from each other, rising."""
        cv2 = opencv()
        run = max(8, round(self.shortest * min(steps.shape)))
        whole = cv2.morphologyEx(steps, cv2.MORPH_CLOSE, np.ones((5, 1), np.uint8))
        lengths = cv2.morphologyEx(whole, cv2.MORPH_OPEN, np.ones((run, 1), np.uint8)).sum(axis=0)
        lengths = lengths - np.minimum(np.roll(lengths, 5), np.roll(lengths, -5)).astype(np.float64)
        kept: list[int] = []
        for column in np.argsort(-lengths, kind="stable"):
            if lengths[column] <= 0 or len(kept) == self.lines:
                break
            if all(abs(int(column) - other) >= 4 for other in kept):
                kept.append(int(column))
        return np.array(sorted(kept), np.int64)


class _Sums:
    """Steps along columns, summed up from the top: a share of any piece is a difference."""

    def __init__(self, steps: U8) -> None:
        self._sums = np.zeros((steps.shape[0] + 1, steps.shape[1]), np.float32)
        np.cumsum(steps, axis=0, out=self._sums[1:])

    def share(self, columns: I64, low: I64, high: I64) -> F32:
        """Of the pixels `low <= y < high` of a column, how many are on a step; 0 of none."""
        n = np.maximum(high - low, 1)
        return np.asarray((self._sums[high, columns] - self._sums[low, columns]) / n, np.float32)

    def beside(self, columns: I64, low: I64, high: I64) -> F32:
        """The same, of five columns to the left and to the right, on average."""
        last = self._sums.shape[1] - 1
        near = [self.share(np.clip(columns + off, 0, last), low, high) for off in (-5, 5)]
        return np.asarray((near[0] + near[1]) / 2, np.float32)

    def beyond(self, columns: I64, low: I64, high: I64) -> F32:
        """The same of a sixth of the length before `low` and after `high`, two pixels off the corners."""
        last, length = len(self._sums) - 1, np.maximum((high - low) // 6, 4)
        above, under = np.clip(low - 2 - length, 0, last), np.clip(high + 2 + length, 0, last)
        before = self.share(columns, above, np.clip(low - 2, above, last))
        return np.asarray((before + self.share(columns, np.clip(high + 2, 0, under), under)) / 2, np.float32)


def _pairs(lines: I64) -> tuple[I64, I64]:
    """All pairs of lines, the lower one first."""
    first, second = np.triu_indices(len(lines), 1)
    return lines[first], lines[second]
