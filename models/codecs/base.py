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
        """(n, d) float32 -> (n,) float32: bits of the code that noise would flip, on average; more: less certain.

        For codecs that know no activations, zeros.
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
