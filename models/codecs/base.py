"""What a codec is, and what a fit is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.artifact import Manifest
from models.codecs.codes import Codes, CodeShape


class Codec(Protocol):
    """Makes codes of one model's embeddings. Its manifest's options name `source_fingerprint`, `source_dim` and `loops`."""

    manifest: Manifest
    shape: CodeShape

    def encode(self, vectors: np.ndarray) -> Codes:
        """(n, d) float32, L2-normalised -> (n, m) uint8, each ≤ `shape.top`. Raises ValueError for another d."""

    def expected_flips(self, vectors: np.ndarray) -> np.ndarray:
        """(n, d) float32 -> (n,) float32: bits in which a positive's code would differ, on average; more: less certain.

        Raises ValueError for another d.
        """


@dataclass(frozen=True)
class CodecTask:
    """One fit.

    Attributes:
        codec: its name in the registry.
        anchors, positives: (n, d) float32, L2-normalised; rows k of both belong together.
        identities: (n,) int64; rows of one identity are never negatives of each other.
        width, loops: of the code.
        old_positives: (n, width) float32, the codes of `positives` under the codec that the new one must be compatible
            with, as unit vectors; None: it stands alone.
        folder, name, modality, identity: of the artifact; `identity` holds its source_fingerprint and source_dim.
        progress: called with (steps done, steps in all).
    """

    codec: str
    anchors: np.ndarray
    positives: np.ndarray
    identities: np.ndarray
    width: int
    loops: int
    old_positives: np.ndarray | None
    folder: Path
    name: str
    modality: str
    identity: Mapping[str, Any]
    seed: int
    threads: int
    progress: Callable[[int, int], None] | None

    @property
    def shape(self) -> CodeShape:
        """Of the codes that are to be made."""
        return CodeShape(self.width, self.loops)

    @property
    def artifact(self) -> dict[str, Any]:
        """What every codec's artifact is named by; its options are to be added to by the method."""
        return {
            "kind": "codec",
            "architecture": self.codec,
            "name": self.name,
            "modality": self.modality,
            "preprocessing": {},
            "dim": self.width,
        }

    @property
    def options(self) -> dict[str, Any]:
        """What every codec's manifest has among its options."""
        return {**self.identity, "loops": self.loops}


def checked(manifest: Manifest, vectors: np.ndarray) -> np.ndarray:
    """`vectors` as contiguous float32. Raises ValueError for another dim than the codec's source."""
    dim = manifest.options["source_dim"]
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"the codec {manifest.name} encodes (n, {dim}) embeddings, not {vectors.shape}")
    return np.ascontiguousarray(vectors, np.float32)


def noisy(vectors: np.ndarray, noise: float, generator: np.random.Generator) -> np.ndarray:
    """(n, d) float32 with Gaussian noise of that standard deviation on each coordinate, L2-normalised again."""
    if not noise:
        return vectors
    moved = vectors + noise * generator.standard_normal(vectors.shape, dtype=np.float32)
    return np.asarray(moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12), np.float32)
