"""What an adapter is, and what a fit is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.artifact import Manifest
from models.errors import UsageError


class Adapter(Protocol):
    """Lifts embeddings; its manifest's options name `source_fingerprint`, `target_fingerprint` and `source_dim`."""

    manifest: Manifest

    @property
    def predicts_uncertainty(self) -> bool:
        """Whether log variances tell items apart; False where they are one constant."""

    def transform(self, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, d_old) float32, L2-normalised -> ((n, d_new) float32, L2-normalised, (n,) float32 log variances).

        A greater log variance means a less certain vector. Raises ValueError for another dim.
        """


@dataclass(frozen=True)
class Task:
    """One fit.

    Attributes:
        adapter: its name in the registry.
        old, new: (n, d_old) and (n, d_new) float32, L2-normalised, row by row the same item.
        folder, name, modality, identity: of the artifact; `identity` holds its source_fingerprint, target_fingerprint and
            source_dim.
        prototypes, labels: (C, d_new) float32 and (n,) int64 places in it, -1 unlabelled; None where there are none.
        progress: called with (steps done, steps in all).
    """

    adapter: str
    old: np.ndarray
    new: np.ndarray
    folder: Path
    name: str
    modality: str
    identity: Mapping[str, Any]
    seed: int
    threads: int
    prototypes: np.ndarray | None
    labels: np.ndarray | None
    progress: Callable[[int, int], None] | None

    @property
    def artifact(self) -> dict[str, Any]:
        """What every artifact is named by."""
        return {
            "architecture": self.adapter,
            "name": self.name,
            "modality": self.modality,
            "identity": self.identity,
        }

    def classes(self) -> Tensor:
        """(C, d_new) float32 prototypes. Raises UsageError where nothing can be learned from classes."""
        if self.prototypes is None or self.labels is None or not (self.labels >= 0).any():
            raise UsageError(
                f"adapter {self.adapter!r} learns from classes: it needs labelled pairs and the rows of the target model's "
                "classifier. Label the gallery and train the model here, or choose mlp or procrustes."
            )
        return torch.from_numpy(self.prototypes)


def checked(manifest: Manifest, old: np.ndarray) -> np.ndarray:
    """`old` as contiguous float32. Raises ValueError for another dim than the adapter's source."""
    dim = manifest.options["source_dim"]
    if old.ndim != 2 or old.shape[1] != dim:
        raise ValueError(f"the adapter {manifest.name} lifts (n, {dim}) embeddings, not {old.shape}")
    return np.ascontiguousarray(old, np.float32)
