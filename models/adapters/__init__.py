"""Forward adapters: old embeddings are lifted into the new model's space in bulk, no item is read.

A new adapter is a new file with `fit(...)` and `load(manifest, tensors)`, and one line in ADAPTERS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.artifact import Manifest, load_artifact
from models.errors import ArtifactError, UsageError

ADAPTERS: dict[str, str] = {"mlp": "models.adapters.mlp", "procrustes": "models.adapters.procrustes"}
"""Adapter name -> module."""

LEAST_PAIRS = 16


class Adapter(Protocol):
    """Lifts embeddings; its manifest's options name `source_fingerprint`, `target_fingerprint` and `source_dim`."""

    manifest: Manifest

    def transform(self, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, d_old) float32, L2-normalised -> ((n, d_new) float32, L2-normalised, (n,) float32 log variances).

        A greater log variance means a less certain vector. Raises ValueError for another dim.
        """


def fit_adapter(
    method: str,
    old: np.ndarray,
    new: np.ndarray,
    *,
    folder: Path,
    name: str,
    modality: str,
    source_fingerprint: str,
    target_fingerprint: str,
    seed: int = 0,
    threads: int = 1,
    prototypes: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Fits an adapter on paired embeddings of the same items and writes its artifact.

    Args:
        old, new: (n, d_old) and (n, d_new) float32, L2-normalised, row by row the same item.
        prototypes, labels: (C, d_new) float32 and (n,) int64 places in it, -1 unlabelled; for the classification term.
        options: the method's own.

    Raises UsageError: unknown method or option, too few pairs, vectors that do not fit or are not finite.
    """
    module = _module(method)
    if len(old) != len(new) or old.ndim != 2 or new.ndim != 2:
        raise UsageError(f"an adapter needs pairs: (n, d) of both models, not {old.shape} and {new.shape}")
    if len(old) < LEAST_PAIRS:
        raise UsageError(f"{len(old)} pairs are too few to fit an adapter: give at least {LEAST_PAIRS}")
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise UsageError("an adapter cannot be fitted: some embeddings are not finite. Embed the items again")
    identity = {
        "source_fingerprint": source_fingerprint,
        "target_fingerprint": target_fingerprint,
        "source_dim": int(old.shape[1]),
    }
    try:
        manifest: Manifest = module.fit(
            np.ascontiguousarray(old, np.float32),
            np.ascontiguousarray(new, np.float32),
            folder=folder,
            name=name,
            modality=modality,
            identity=identity,
            seed=seed,
            threads=threads,
            prototypes=prototypes,
            labels=labels,
            progress=progress,
            **(options or {}),
        )
    except TypeError as error:
        raise UsageError(f"adapter {method!r} cannot take {dict(options or {})}: {error}") from error
    return manifest


def load_adapter(folder: Path) -> Adapter:
    """The adapter of an artifact, verified. Raises ArtifactError as `load_artifact`, or for an unknown adapter."""
    manifest, tensors = load_artifact(folder)
    if manifest.kind != "adapter":
        raise ArtifactError(f"{folder} holds an {manifest.kind}, not an adapter: name the adapter's folder")
    if manifest.architecture not in ADAPTERS:
        raise ArtifactError(f"unknown adapter {manifest.architecture!r}: known are {', '.join(ADAPTERS)}")
    try:
        adapter: Adapter = _module(manifest.architecture).load(manifest, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder} does not fit its adapter {manifest.architecture!r}: {error}. Fit it again"
        ) from error
    return adapter


def checked(manifest: Manifest, old: np.ndarray) -> np.ndarray:
    """`old` as contiguous float32. Raises ValueError for another dim than the adapter's source."""
    dim = manifest.options["source_dim"]
    if old.ndim != 2 or old.shape[1] != dim:
        raise ValueError(f"the adapter {manifest.name} lifts (n, {dim}) embeddings, not {old.shape}")
    return np.ascontiguousarray(old, np.float32)


def _module(method: str) -> Any:
    if method not in ADAPTERS:
        raise UsageError(f"unknown adapter {method!r}: choose one of {', '.join(ADAPTERS)}")
    return importlib.import_module(ADAPTERS[method])
