"""Local features: SIFT points of a picture, as RootSIFT in whole numbers.

A descriptor is `round(255 * sqrt(v / sum(v)))`, so its length is about 255 and each number fits a byte. Squared distances
of two are whole numbers under 2^24: float32 holds them exactly, and so do sums over float16 copies of the descriptors.

cos(a, b) is about `1 - d^2 / (2 * 255^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.errors import UsageError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

WIDTH = 128
SHORT_SIDE = 300
LEAST_POINTS = 10


@dataclass(frozen=True, eq=False)
class Features:
    """The points of a picture.

    Attributes:
        positions: (n, 2) float32, x and y in pixels of the reduced picture.
        descriptors: (n, 128) uint8, RootSIFT.
    """

    positions: F32
    descriptors: U8

    def __post_init__(self) -> None:
        n = len(self.positions)
        if self.positions.shape != (n, 2) or self.descriptors.shape != (n, WIDTH):
            raise ValueError(
                f"{self.positions.shape} positions and {self.descriptors.shape} descriptors are no features"
            )
        if self.descriptors.dtype != np.uint8:
            raise ValueError(f"descriptors are uint8, not {self.descriptors.dtype}")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def usable(self) -> bool:
        """Whether there are enough points to say anything: at least 10."""
        return len(self) >= LEAST_POINTS

    def mirrored(self) -> Features:
        """The features of the mirrored picture, but for their positions: SIFT is not run again."""
        return Features(self.positions, mirror(self.descriptors))


@dataclass(frozen=True)
class SiftOptions:
    """Of OpenCV's SIFT, whose numbers do not mean what those of other libraries mean: docs/MATCHING.md.

    Attributes:
        levels: per octave; OpenCV chooses the number of octaves by the picture's size and begins at twice its size.
        contrast: OpenCV divides it by `levels`; pixels are in 0..1.
        edge: highest ratio of the two curvatures is `(edge + 1)^2 / edge`.
        short_side: larger pictures are reduced to it; smaller ones are never enlarged.
        most: points kept, by contrast; 0: all.
    """

    levels: int = 3
    contrast: float = 0.02
    edge: float = 10.0
    short_side: int = SHORT_SIDE
    most: int = 0


class Sift:
    """OpenCV's SIFT on grey pictures, one after the other. Raises UsageError where OpenCV is not installed."""

    def __init__(self, options: SiftOptions | None = None) -> None:
        self.options = options or SiftOptions()
        o = self.options
        self._sift: Any = opencv().SIFT_create(
            nfeatures=o.most, nOctaveLayers=o.levels, contrastThreshold=o.contrast, edgeThreshold=o.edge
        )

    def __call__(self, picture: Image.Image) -> Features:
        """The features of a picture of any mode; none for a picture without structure."""
        grey = np.asarray(reduced(picture, self.options.short_side).convert("L"))
        points, raw = self._sift.detectAndCompute(grey, None)
        if raw is None or not len(points):
            return Features(np.zeros((0, 2), np.float32), np.zeros((0, WIDTH), np.uint8))
        positions = np.array([point.pt for point in points], np.float32)
        return Features(positions, root_sift(np.asarray(raw, np.float32)))


def reduced(picture: Image.Image, short_side: int = SHORT_SIDE) -> Image.Image:
    """The picture with its short side at most `short_side`, proportions kept; never enlarged."""
    scale = short_side / min(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, int(side * scale + 1e-9)) for side in picture.size)
    rgb = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    return rgb.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def root_sift(raw: F32) -> U8:
    """(n, 128) raw descriptors, none negative, as RootSIFT: `round(255 * sqrt(v / ||v||_1))`, a row of zeros stays zero.

    Halves are rounded to the even number, as everywhere in numpy. Raises ValueError for negative numbers.
    """
    values = np.asarray(raw, np.float64)
    if (values < 0).any():
        raise ValueError("descriptors are histograms: none is negative")
    sums = values.sum(axis=1, keepdims=True)
    return np.asarray(np.rint(255 * np.sqrt(values / np.where(sums > 0, sums, 1))), np.uint8)


def _mirror_order() -> npt.NDArray[np.int64]:
    """Rows of four cells in reverse, orientations 0, 7, 6, ..., 1."""
    cells = np.arange(WIDTH).reshape(4, 4, 8)
    return cells[::-1][:, :, (-np.arange(8)) % 8].reshape(-1)


MIRROR = _mirror_order()


def mirror(descriptors: U8) -> U8:
    """(n, 128) descriptors as the mirrored picture has them. Twice is the identity.

    A point's cells lie along its own orientation. Mirroring turns the orientation with the picture, so along it nothing
    changes; across it rows change places, and angles run the other way round.
    """
    return descriptors[:, MIRROR]


def opencv() -> ModuleType:
    """OpenCV. Raises UsageError, naming the extra, where it is not installed."""
    try:
        import cv2
    except ImportError as missing:
        raise UsageError(
            "copy detection needs OpenCV, which is not installed: pip install 'hotrefresh[matching]'."
        ) from missing
    return cv2
