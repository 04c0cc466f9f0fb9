"""`--encoder module:factory`: a user's own encoder, in torch or numpy, called and pinned by what it answers.

`factory(**options)` returns an object with

    encode(items) -> (n, dim) array or tensor     items: n pictures (PIL, mode "L" or "RGB") or n texts, or what preprocess made
    preprocess(item)                              optional: one item, thread-safe
    modality                                      optional: "image" (default) or "text"

Its weights are its own business, so the artifact keeps its answer to a few probe items: at every load it must answer the
same (cosine at least 0.999 each), or it is another model under an old name and is refused.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.artifact import Manifest, save_artifact
from models.errors import ArtifactError, UsageError

_PROBE = "probe"
_LEAST_COSINE = 0.999
_TEXTS = ("a red apple", "In the beginning", "0123456789", "the quick brown fox jumps over the lazy dog")


class FactoryEncoder:
    """An `Encoder` around a user's object; normalises and checks what it returns."""

    def __init__(self, manifest: Manifest, own: Any) -> None:
        self.manifest = manifest
        self.own = own

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.manifest.dim

    @property
    def modality(self) -> str:
        """ "image" or "text"."""
        return self.manifest.modality

    def preprocess(self, item: Image.Image | str) -> Any:
        """The user's `preprocess`, or the item as it is."""
        own = getattr(self.own, "preprocess", None)
        return item if own is None else own(item)

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(n, dim) float32, L2-normalised, finite. Raises ArtifactError when the user's encoder returns anything else."""
        if not len(prepared):
            return np.empty((0, self.dim), np.float32)
        vectors = _embed(self.own, prepared, self.manifest.architecture)
        if vectors.shape[1] != self.dim:
            raise ArtifactError(
                f"{self.manifest.name} returned vectors of {vectors.shape[1]} dims, its manifest says {self.dim}"
            )
        return vectors


def create(folder: Path, name: str, factory: str, options: Mapping[str, Any] | None = None) -> Manifest:
    """Calls `module:factory` with `options` and writes an artifact that pins its answers to the probe items.

    Raises UsageError: the factory cannot be imported or called, or its encoder returns no finite (n, dim) vectors.
    """
    own = _call(factory, options or {})
    modality = str(getattr(own, "modality", "image"))
    if modality not in ("image", "text"):
        raise UsageError(f"{factory}: modality cannot be {modality!r}; set it to 'image' or 'text'")
    try:
        vectors = _probe(own, modality, factory)
    except ArtifactError as error:
        raise UsageError(str(error)) from error
    return save_artifact(
        folder,
        {_PROBE: torch.from_numpy(vectors)},
        kind="encoder",
        name=name,
        architecture="factory",
        options={
            "factory": factory,
            "options": dict(options or {}),
            "source_sha256": _source_digest(factory),
        },
        modality=modality,
        preprocessing={},
        dim=int(vectors.shape[1]),
        training={"method": "own"},
    )


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> FactoryEncoder:
    """The encoder of an artifact. Raises ArtifactError when the factory is gone or answers otherwise than it did."""
    factory = manifest.options["factory"]
    try:
        own = _call(factory, manifest.options["options"])
    except UsageError as error:
        raise ArtifactError(str(error)) from error
    vectors = _probe(own, manifest.modality, factory)
    kept = tensors[_PROBE].numpy()
    if vectors.shape != kept.shape or (vectors * kept).sum(axis=1).min() < _LEAST_COSINE:
        raise ArtifactError(
            f"{factory} no longer answers as it did when {manifest.name!r} was registered: its code or weights changed. "
            "Register the changed encoder under a name of its own"
        )
    return FactoryEncoder(manifest, own)


def _call(factory: str, options: Mapping[str, Any]) -> Any:
    module_name, colon, attribute = factory.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"{factory!r} names no encoder: write module:factory")
    try:
        own = getattr(importlib.import_module(module_name), attribute)(**options)
    except Exception as error:  # a user's code may raise anything
        raise UsageError(f"{factory} could not be called: {type(error).__name__}: {error}") from error
    if not callable(getattr(own, "encode", None)):
        raise UsageError(f"{factory} returned {type(own).__name__}, which has no encode(items)")
    return own


def _probe(own: Any, modality: str, factory: str) -> np.ndarray:
    items: list[Any] = list(_TEXTS) if modality == "text" else _pictures()
    prepare = getattr(own, "preprocess", None)
    return _embed(own, items if prepare is None else [prepare(item) for item in items], factory)


def _pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    blocks = noise[:, ::16, ::16].repeat(16, axis=1).repeat(16, axis=2)
    return [Image.fromarray(pixels) for pixels in np.concatenate([noise[:2], blocks[:2]])]


def _embed(own: Any, prepared: Sequence[Any], factory: str) -> np.ndarray:
    with torch.inference_mode():
        try:
            answer = own.encode(prepared)
        except Exception as error:
            raise ArtifactError(f"{factory} could not embed: {type(error).__name__}: {error}") from error
    vectors = np.asarray(answer.detach().cpu() if isinstance(answer, Tensor) else answer, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(prepared):
        raise ArtifactError(
            f"{factory} returned shape {vectors.shape} for {len(prepared)} items, not ({len(prepared)}, dim)"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.min() > 0:
        raise ArtifactError(f"{factory} returned vectors that are zero or not finite")
    return np.ascontiguousarray(vectors / lengths)


def _source_digest(factory: str) -> str:
    module = importlib.import_module(factory.partition(":")[0])
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
