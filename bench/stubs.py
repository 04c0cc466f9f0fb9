"""Encoders that compute next to nothing: what else takes time is then ours. Every row that uses one says "stub"."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifact import Manifest
from models.encoders import Encoder

F32 = npt.NDArray[np.float32]
_LOW, _HIGH = 1024, 4096


def unit(vectors: npt.NDArray[Any]) -> F32:
    """Rows of length 1, float32."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


class PacedStub:
    """Takes n / rate seconds for n items: a GPU that leaves the processor alone."""

    modality = "image"
    manifest: Manifest  # it has none: nothing loads it

    def __init__(self, rate_per_s: int, dim: int = 64) -> None:
        self.rate_per_s = rate_per_s
        self.dim = dim
        # One vector for all: an item alone is answered as in a batch, which is what workers look at.
        self._vectors = np.repeat(unit(np.random.default_rng(0).normal(size=(1, dim))), 4096, axis=0)

    def preprocess(self, item: Any) -> Any:
        """The item as it is."""
        return item

    def encode(self, prepared: Sequence[Any]) -> F32:
        """(n, dim) float32 after n / rate seconds; n up to 4,096."""
        time.sleep(len(prepared) / self.rate_per_s)
        return self._vectors[: len(prepared)]


class Timed:
    """An encoder that adds up how long it was busy."""

    manifest: Manifest

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.dim = encoder.dim
        self.modality = encoder.modality
        self.preprocess = encoder.preprocess
        self.busy_s = 0.0

    def encode(self, prepared: Sequence[Any]) -> F32:
        """What the encoder says."""
        started = time.perf_counter()
        vectors = self._encoder.encode(prepared)
        self.busy_s += time.perf_counter() - started
        return vectors


class NumberedTexts:
    """The vector of "item 57" and of "query 57" is that of number 57, so that right answers are known.

    Args:
        moved: 0 is the old model; a new one moves every vector by this share, in a direction of its own.
    """

    modality = "text"

    def __init__(self, dim: int = 64, moved: float = 0.0) -> None:
        self._low, self._high, self._moves = (
            np.random.default_rng(seed).normal(size=(size, dim)).astype(np.float32)
            for seed, size in enumerate((_LOW, _HIGH, _LOW))
        )
        self._moved = np.float32(moved)

    def encode(self, prepared: Sequence[str]) -> F32:
        """(n, dim) float32, L2-normalised."""
        return self.vectors(np.array([_number(text) for text in prepared], np.int64))

    def vectors(self, numbers: npt.NDArray[np.int64]) -> F32:
        """(n, dim) float32 of numbers up to four million, L2-normalised."""
        low = numbers % _LOW
        return unit(self._low[low] + self._high[numbers // _LOW % _HIGH] + self._moved * self._moves[low])


def _number(text: str) -> int:
    last = text.rpartition(" ")[2]
    return int(last) if last.isascii() and last.isdigit() else zlib.crc32(text.encode())
