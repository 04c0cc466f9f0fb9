"""Real photographs for the tests of copy detection: regions that scikit-image ships."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image

from models.datasets import read_item
from models.matching.local import Features, Sift


@lru_cache(maxsize=1)
def sift() -> Sift:
    return Sift()


def region(name: str) -> Image.Image:
    return read_item(f"copy:0/{name}/original")


@lru_cache(maxsize=64)
def features(name: str) -> Features:
    return sift()(region(name))
