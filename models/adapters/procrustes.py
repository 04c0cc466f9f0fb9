"""Centred orthogonal Procrustes: the best rotation between two models that nobody trained together.

With both clouds centred, `R = argmin ||X R - Y||_F` over R with orthonormal rows or columns is `U V^T` from the SVD
`X^T Y = U S V^T` (Schönemann, 1966). With other dims R is rectangular, (d_old, d_new), of rank min(d_old, d_new): old
embeddings are turned into a subspace of the new space (d_old < d_new) or keep their best-matching directions
(d_old > d_new). A lifted vector is `(x - mean_old) scale R + mean_new`, normalised; `scale = sum S / ||X||_F^2`, so that
the centred vectors stand in the right proportion to the mean.
"""

from __future__ import annotations

import time

import numpy as np

from models.adapters import affine
from models.adapters.base import Task
from models.artifact import Manifest

load = affine.load


def fit(task: Task) -> Manifest:
    """Solves for the rotation in closed form and writes the artifact; see `models.adapters.fit_adapter`."""
    started = time.monotonic()
    source_mean, target_mean = task.old.mean(axis=0), task.new.mean(axis=0)
    source, target = task.old - source_mean, task.new - target_mean
    left, sizes, right = np.linalg.svd(source.T.astype(np.float64) @ target, full_matrices=False)
    scale = sizes.sum() / max(float(np.square(source, dtype=np.float64).sum()), 1e-12)
    if task.progress is not None:
        task.progress(1, 1)
    return affine.save(
        task.folder,
        task.old,
        task.new,
        matrix=scale * (left @ right),
        source_mean=source_mean,
        target_mean=target_mean,
        training={"seconds": round(time.monotonic() - started, 2)},
        **task.artifact,
    )
