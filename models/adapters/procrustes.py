"""Centred orthogonal Procrustes: the best rotation between two models that nobody trained together.

With both clouds centred, `R = argmin ||X R - Y||_F` over R with orthonormal rows or columns is `U V^T` from the SVD
`X^T Y = U S V^T` (Schönemann, 1966). With other dims R is rectangular, (d_old, d_new), of rank min(d_old, d_new): old
embeddings are turned into a subspace of the new space (d_old < d_new) or keep their best-matching directions
(d_old > d_new). A lifted vector is `(x - mean_old) scale R + mean_new`, normalised; `scale = sum S / ||X||_F^2`, so that
the centred vectors stand in the right proportion to the mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.adapters import checked
from models.artifact import Manifest, save_artifact


class ProcrustesAdapter:
    """An `Adapter` of one affine map. Its log variance is one constant: it knows no uncertainty of its own."""

    def __init__(self, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
        self.manifest = manifest
        self.source_mean = tensors["source_mean"].numpy()
        self.target_mean = tensors["target_mean"].numpy()
        self.rotation = tensors["rotation"].numpy()
        self.log_variance = float(tensors["log_variance"])
        if self.rotation.shape != (manifest.options["source_dim"], manifest.dim):
            raise ValueError(f"the rotation has shape {self.rotation.shape}")

    def transform(self, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `models.adapters.Adapter`."""
        lifted = (checked(self.manifest, old) - self.source_mean) @ self.rotation + self.target_mean
        lifted /= np.maximum(np.linalg.norm(lifted, axis=1, keepdims=True), 1e-12)
        return lifted.astype(np.float32), np.full(len(old), self.log_variance, np.float32)


def fit(
    old: np.ndarray,
    new: np.ndarray,
    *,
    folder: Path,
    name: str,
    modality: str,
    identity: Mapping[str, Any],
    seed: int,
    threads: int,
    prototypes: np.ndarray | None,
    labels: np.ndarray | None,
    progress: Callable[[int, int], None] | None,
) -> Manifest:
    """Solves for the rotation in closed form and writes the artifact; see `models.adapters.fit_adapter`."""
    started = time.monotonic()
    source_mean, target_mean = old.mean(axis=0), new.mean(axis=0)
    source, target = old - source_mean, new - target_mean
    left, sizes, right = np.linalg.svd(source.T.astype(np.float64) @ target, full_matrices=False)
    scale = sizes.sum() / max(float(np.square(source, dtype=np.float64).sum()), 1e-12)
    rotation = scale * (left @ right)
    error = np.square(source @ rotation - target).sum(axis=1).mean()
    tensors = {
        "source_mean": source_mean,
        "target_mean": target_mean,
        "rotation": rotation.astype(np.float32),
        "log_variance": np.array(np.log(max(error, 1e-12)), np.float32),
    }
    if progress is not None:
        progress(1, 1)
    return save_artifact(
        folder,
        {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()},
        kind="adapter",
        name=name,
        architecture="procrustes",
        options=dict(identity),
        modality=modality,
        preprocessing={},
        dim=int(new.shape[1]),
        training={"pairs": len(old), "seconds": round(time.monotonic() - started, 2)},
    )


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> ProcrustesAdapter:
    """The adapter of an artifact."""
    return ProcrustesAdapter(manifest, tensors)
