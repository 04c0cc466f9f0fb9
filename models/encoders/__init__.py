"""Encoders: one file an architecture, loaded lazily by name.

A new architecture is a new file with `load(manifest, tensors) -> Encoder` and one line in ARCHITECTURES.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from models.artifact import Manifest, load_artifact
from models.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from models.encoders.images import ImagePreprocessing

ARCHITECTURES: dict[str, str] = {
    "convnet": "models.encoders.convnet",
    "vit": "models.encoders.vit",
    "vit_adapted": "models.encoders.vit_adapted",
    "wordllama": "models.encoders.wordllama",
    "minilm": "models.encoders.minilm",
    "r2plus1d": "models.encoders.r2plus1d",
    "frame_vit": "models.encoders.frame_vit",
    "stored_features": "models.encoders.stored_features",
    "text_tower": "models.encoders.text_tower",
    "factory": "models.encoders.factory",
}
"""Architecture name -> module with `load(manifest, tensors) -> Encoder`."""
CALLS_CODE = "factory"
"""The architecture whose artifacts name a Python function to call."""


class Encoder(Protocol):
    """Turns items into vectors. Both methods may be called from several threads."""

    manifest: Manifest

    @property
    def dim(self) -> int:
        """Length of the vectors."""

    @property
    def modality(self) -> str:
        """ "image", "text" or "video"."""

    def preprocess(self, item: Any) -> Any:
        """One item as `models.datasets.read_item` returns it, ready for `encode`; cheap and thread-safe."""

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, dim) float32, L2-normalised, finite. `prepared` are n results of `preprocess`."""


def load_encoder(folder: Path, *, expected: str | None = None, own_code: bool = False) -> Encoder:
    """The encoder of an artifact, verified.

    Args:
        expected: the fingerprint it was registered with; anything else is refused before any of it is run.
        own_code: whether the artifact may name Python code to call (`--encoder module:factory`). Only where a person
            named that code, or the ledger holds its fingerprint: an artifact from elsewhere could name `os:system`.

    Raises ArtifactError as `load_artifact`, or for an unknown architecture, another fingerprint, code that nobody named.
    """
    manifest, tensors = load_artifact(folder)
    if manifest.kind != "encoder":
        raise ArtifactError(f"{folder} holds an {manifest.kind}, not an encoder: name the encoder's folder")
    if expected is not None and manifest.fingerprint != expected:
        raise ArtifactError(
            f"the artifact in {folder} is not the one that was registered (fingerprint {manifest.fingerprint[:12]} "
            f"instead of {expected[:12]}); restore it, or import the new one under another name."
        )
    if manifest.architecture == CALLS_CODE and not own_code:
        raise ArtifactError(
            f"{folder} names code to call ({str(manifest.options.get('factory'))[:80]!r}), which an artifact from elsewhere "
            "may not do: look at that code, then name it yourself with `hotrefresh model import NAME --encoder MODULE:FACTORY`"
        )
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


TRAINABLE: Mapping[str, tuple[str, ...]] = {"image": ("convnet", "vit"), "video": ("r2plus1d", "frame_vit")}
"""Modality -> architectures with a `NETWORK`, the class whose options `model train` takes, and a `build`; the first is usual."""


def check_network(
    architecture: str, options: Mapping[str, Any], dim: int, preprocessing: ImagePreprocessing
) -> None:
    """Raises UsageError, naming what there is, for options that a trainable architecture's network does not take."""
    import torch

    module = architecture_module(architecture)
    given = {"self", "dim", "channels", "size"}  # by the embeddings and the pictures
    known = [name for name in inspect.signature(module.NETWORK).parameters if name not in given]
    for name in options:
        if name not in known:
            raise UsageError(f"the network of {architecture} cannot take {name}; it has {', '.join(known)}")
    try:
        with torch.device("meta"):  # shapes without weights
            module.build(options, dim, preprocessing)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UsageError(
            f"the network of {architecture} cannot be built for {preprocessing.modality}s of {preprocessing.size} pixels: {error}"
        ) from error
