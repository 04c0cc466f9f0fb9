"""What two lengths of embeddings have in common, by rule instead of by fitting: pad with zeros, or cut.

Compatible training against an old model of another length compares leading coordinates (`models.compat.base`), so this
is how its embeddings meet: a stored vector that is shorter is padded with zeros, one that is longer keeps its first
coordinates; the adapter normalises again.
"""

from __future__ import annotations

import numpy as np

from models.adapters import affine
from models.adapters.base import Task
from models.artifact import Manifest

load = affine.load


def fit(task: Task) -> Manifest:
    """Writes the rule as an artifact; the pairs say how large its error is. See `models.adapters.fit_adapter`."""
    if task.progress is not None:
        task.progress(1, 1)
    dims = task.old.shape[1], task.new.shape[1]
    return affine.save(
        task.folder,
        task.old,
        task.new,
        matrix=np.eye(*dims, dtype=np.float32),
        source_mean=np.zeros(dims[0], np.float32),
        target_mean=np.zeros(dims[1], np.float32),
        training={},
        **task.artifact,
    )


def leading(vectors: np.ndarray, dim: int) -> np.ndarray:
    """(n, dim) float32, L2-normalised, from (n, d) float32; the same array where d is dim."""
    if vectors.shape[1] == dim:
        return vectors
    found = np.zeros((len(vectors), dim), np.float32)
    kept = min(dim, vectors.shape[1])
    found[:, :kept] = vectors[:, :kept]
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found
