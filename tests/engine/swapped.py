"""An encoder that takes some classes for others: what a model is that was trained on swapped labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.encoders import load_encoder


class Swapped:
    """`old`'s network, but a picture of the first of two classes is embedded as one of the second, and back.

    Args:
        encoder: folder of the network's artifact.
        pictures: folder with a sub-folder for each class, where one picture of each is looked at.
        pairs: names of classes that are taken for each other.
    """

    modality = "image"

    def __init__(self, encoder: str, pictures: str, pairs: list[list[str]]) -> None:
        self._encoder = load_encoder(Path(encoder))
        self.dim = self._encoder.dim
        names = sorted(folder.name for folder in Path(pictures).iterdir())
        self._examples = np.concatenate(
            [self._embed(Image.open(Path(pictures) / name / "0.png").convert("L")) for name in names]
        )
        self._other = np.arange(len(names))
        for one, two in pairs:
            a, b = names.index(one), names.index(two)
            self._other[[a, b]] = b, a

    def preprocess(self, content: Image.Image) -> Image.Image:
        """The picture itself."""
        return content.convert("L")

    def encode(self, prepared: list[Image.Image]) -> np.ndarray:
        """(n, dim) float32, L2-normalised."""
        found = np.concatenate([self._embed(picture) for picture in prepared])
        nearest = (found @ self._examples.T).argmax(axis=1)
        wrong = self._other[nearest]
        moved = found + np.where(
            (wrong != nearest)[:, None], self._examples[wrong] - self._examples[nearest], 0
        )
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)

    def _embed(self, picture: Image.Image) -> np.ndarray:
        return self._encoder.encode([self._encoder.preprocess(picture)])
