"""Encoders: one file an architecture, loaded lazily by name.

A new architecture is a new file with `load(manifest, tensors) -> Encoder` and one line in ARCHITECTURES.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from models.artifact import Manifest, load_artifact
from models.errors import ArtifactError

if TYPE_CHECKING:
    from PIL import Image

ARCHITECTURES: dict[str, str] = {
    "convnet": "models.encoders.convnet",
    "vit": "models.encoders.vit",
    "wordllama": "models.encoders.wordllama",
    "minilm": "models.encoders.minilm",
    "factory": "models.encoders.factory",
}
"""Architecture name -> module with `load(manifest, tensors) -> Encoder`."""


class Encoder(Protocol):
    """Turns items into vectors. Both methods may be called from several threads."""

    manifest: Manifest

    @property
    def dim(self) -> int:
        """Length of the vectors."""

    @property
    def modality(self) -> str:
        """ "image" or "text"."""

    def preprocess(self, item: Image.Image | str) -> np.ndarray | str:
        """One item, ready for `encode`; cheap and thread-safe."""

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, dim) float32, L2-normalised, finite. `prepared` are n results of `preprocess`."""


def load_encoder(folder: Path) -> Encoder:
    """The encoder of an artifact, verified. Raises ArtifactError as `load_artifact`, or for an unknown architecture."""
    manifest, tensors = load_artifact(folder)
    if manifest.kind != "encoder":
        raise ArtifactError(f"{folder} holds an {manifest.kind}, not an encoder: name the encoder's folder")
    module = architecture_module(manifest.architecture)
    try:
        encoder: Encoder = module.load(manifest, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder} does not fit its architecture {manifest.architecture!r}: {error}. Train the model again"
        ) from error
    return encoder


def architecture_module(name: str) -> Any:
    """The module of an architecture. Raises ArtifactError for an unknown name."""
    if name not in ARCHITECTURES:
        raise ArtifactError(f"unknown architecture {name!r}: known are {', '.join(sorted(ARCHITECTURES))}")
    return importlib.import_module(ARCHITECTURES[name])
