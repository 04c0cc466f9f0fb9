"""Adapters: embeddings of one model are led into another's space in bulk, no item is read.

Forward, stored embeddings are lifted into the new space. Backward, fitted with the roles of the models exchanged, new
queries are mapped into the old space and the gallery stays as it is (Drift-Adapter).

A new adapter is a new file with `fit(task, **options)` and `load(manifest, tensors)`, and one line in ADAPTERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.adapters.base import Adapter, Task
from models.artifact import Manifest
from models.errors import UsageError
from models.options import check_options
from models.registered import load_registered, module_of

ADAPTERS: dict[str, str] = {
    "mlp": "models.adapters.mlp",
    "procrustes": "models.adapters.procrustes",
    "low_rank": "models.adapters.low_rank",
    "residual_mlp": "models.adapters.residual_mlp",
    "lambda_orthogonal": "models.adapters.lambda_orthogonal",
    "fct": "models.adapters.fct",
    "fastfill": "models.adapters.fastfill",
    "bict": "models.adapters.bict",
    "leading": "models.adapters.leading",
}
"""Adapter name -> module."""

LEAST_PAIRS = 16


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
        old, new: (n, d_old) and (n, d_new) float32, L2-normalised, row by row the same item: from and to.
        prototypes, labels: (C, d_new) float32 and (n,) int64 places in it, -1 unlabelled; for the classification term.
        options: the method's own.

    Raises UsageError: unknown method or option, too few pairs, vectors that do not fit or are not finite.
    """
    module = module_of(method, "adapter", ADAPTERS)
    if len(old) != len(new) or old.ndim != 2 or new.ndim != 2:
        raise UsageError(f"an adapter needs pairs: (n, d) of both models, not {old.shape} and {new.shape}")
    if len(old) < LEAST_PAIRS:
        raise UsageError(f"{len(old)} pairs are too few to fit an adapter: give at least {LEAST_PAIRS}")
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise UsageError("an adapter cannot be fitted: some embeddings are not finite. Embed the items again")
    if (prototypes is None) != (labels is None):
        prototypes = labels = None
    if prototypes is not None and labels is not None:
        _check_classes(prototypes, labels, new)
    chosen = dict(options or {})
    check_options(f"adapter {method!r}", module.fit, chosen)
    task = Task(
        adapter=method,
        old=np.ascontiguousarray(old, np.float32),
        new=np.ascontiguousarray(new, np.float32),
        folder=folder,
        name=name,
        modality=modality,
        identity={
            "source_fingerprint": source_fingerprint,
            "target_fingerprint": target_fingerprint,
            "source_dim": int(old.shape[1]),
        },
        seed=seed,
        threads=threads,
        prototypes=None if prototypes is None else np.ascontiguousarray(prototypes, np.float32),
        labels=None if labels is None else np.ascontiguousarray(labels, np.int64),
        progress=progress,
    )
    manifest: Manifest = module.fit(task, **chosen)
    return manifest


def _check_classes(prototypes: np.ndarray, labels: np.ndarray, new: np.ndarray) -> None:
    if prototypes.ndim != 2 or prototypes.shape[1] != new.shape[1]:
        raise UsageError(
            f"the classifier's rows {prototypes.shape} are not in the new model's space of {new.shape[1]} dims"
        )
    if labels.shape != (len(new),):
        raise UsageError(f"{len(new)} pairs need as many labels, not {labels.shape}")
    if labels.min() < -1 or labels.max() >= len(prototypes):
        raise UsageError(
            f"labels are places among {len(prototypes)} rows of the classifier, or -1, not "
            f"{labels.min()}..{labels.max()}"
        )


def load_adapter(folder: Path) -> Adapter:
    """The adapter of an artifact, verified. Raises ArtifactError as `load_registered`."""
    loaded: Adapter = load_registered(folder, "adapter", ADAPTERS)
    return loaded


__all__ = ["ADAPTERS", "LEAST_PAIRS", "Adapter", "Task", "fit_adapter", "load_adapter"]
