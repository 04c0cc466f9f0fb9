"""Low-rank affine map `x U V^T + b`, one of Drift-Adapter's three (2025), in closed form.

With both clouds centred, the map of rank r with the least mean squared error is reduced-rank regression (Izenman, 1975):
the ridge solution `A = (X^T X + ridge n I)^-1 X^T Y`, then the projection of its fitted values on their r first principal
directions. Drift-Adapter descends to the same error by gradients.
"""

from __future__ import annotations

import time

import numpy as np

from models.adapters import affine
from models.adapters.base import Task
from models.artifact import Manifest
from models.options import at_least

load = affine.load


def fit(task: Task, rank: int = 64, ridge: float = 1e-4) -> Manifest:
    """Solves and writes the artifact; see `models.adapters.fit_adapter`.

    Args:
        rank: r; as many as there are dims where that is less.
        ridge: of the regression, relative to n.
    """
    at_least(1, rank=rank)
    at_least(0, ridge=ridge)
    started = time.monotonic()
    source_mean, target_mean = task.old.mean(axis=0), task.new.mean(axis=0)
    source, target = (task.old - source_mean).astype(np.float64), (task.new - target_mean).astype(np.float64)
    gram = source.T @ source + ridge * len(source) * np.eye(source.shape[1])
    matrix = np.linalg.solve(gram, source.T @ target)
    _, _, directions = np.linalg.svd(source @ matrix, full_matrices=False)
    kept = directions[:rank]
    if task.progress is not None:
        task.progress(1, 1)
    return affine.save(
        task.folder,
        task.old,
        task.new,
        matrix=matrix @ kept.T @ kept,
        source_mean=source_mean,
        target_mean=target_mean,
        training={"rank": len(kept), "ridge": ridge, "seconds": round(time.monotonic() - started, 2)},
        **task.artifact,
    )
