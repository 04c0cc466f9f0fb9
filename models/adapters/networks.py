"""Adapters that are networks: what they look like, how they transform, how they are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.adapters.base import Task, checked
from models.adapters.descent import Descent
from models.artifact import Manifest, save_artifact
from models.options import above_zero, at_least

_CHUNK_ROWS = 8192


class Psi(nn.Module):
    """A linear map plus a residual MLP: (B, source_dim) -> ((B, dim) not normalised, (B,) log variance)."""

    def __init__(self, source_dim: int, dim: int, hidden: int = 512, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        incoming = source_dim
        for _ in range(depth):
            layers += [nn.Linear(incoming, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(True)]
            incoming = hidden
        self.linear = nn.Linear(source_dim, dim)
        self.body = nn.Sequential(*layers)
        self.residual = nn.Linear(hidden, dim)
        self.log_variance = nn.Linear(hidden, 1)

    def forward(self, old: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.body(old)
        return self.linear(old) + self.residual(features), self.log_variance(features).squeeze(1)


class Recycler(nn.Module):
    """FCT's network without its branch for side information: a projection of two layers, then a mixer of three.

    (B, source_dim) -> ((B, dim) not normalised, (B,) log variance from a linear head on the output, as FastFill has it).
    Sizes as in the authors' code, but for the mixer's `inner` (2048 there).
    """

    def __init__(self, source_dim: int, dim: int, inner: int = 512) -> None:
        super().__init__()
        sizes = [source_dim, 2 * source_dim, 2 * dim, inner, inner]
        layers: list[nn.Module] = []
        for incoming, outgoing in pairwise(sizes):
            layers += [nn.Linear(incoming, outgoing, bias=False), nn.BatchNorm1d(outgoing), nn.ReLU(True)]
        self.body = nn.Sequential(*layers, nn.Linear(inner, dim))
        self.log_variance = nn.Linear(dim, 1)

    def forward(self, old: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        found = self.body(old)
        return found, self.log_variance(found).squeeze(1)


NETWORKS: dict[str, type[nn.Module]] = {"psi": Psi, "recycler": Recycler}
"""Name in a manifest -> network."""


class NetworkAdapter:
    """An `Adapter` around a network."""

    def __init__(self, manifest: Manifest, network: nn.Module) -> None:
        self.manifest = manifest
        self.network = network.eval().requires_grad_(False)

    @property
    def predicts_uncertainty(self) -> bool:
        """See `models.adapters.Adapter`."""
        return bool(self.manifest.options["predicts_uncertainty"])

    def transform(self, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `models.adapters.Adapter`."""
        old = checked(self.manifest, old)
        lifted = np.empty((len(old), self.manifest.dim), np.float32)
        log_variance = np.zeros(len(old), np.float32)
        with torch.inference_mode():
            for at in range(0, len(old), _CHUNK_ROWS):
                rows = slice(at, at + _CHUNK_ROWS)
                vectors, certainty = self.network(torch.from_numpy(old[rows]))
                lifted[rows] = functional.normalize(vectors, dim=1).numpy()
                if self.predicts_uncertainty:
                    log_variance[rows] = certainty.numpy()
        return lifted, log_variance


NetworkLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""The network, (B, source_dim) sources, (B, dim) targets, (B,) int64 labels, -1 unlabelled -> the scalar to be lowered."""


def fit(
    task: Task,
    descent: Descent,
    loss: NetworkLoss,
    *,
    kind: str,
    shape: Mapping[str, Any],
    predicts_uncertainty: bool,
    training: Mapping[str, Any],
) -> Manifest:
    """Builds a network, lowers a loss by descent, and writes the artifact.

    The other arguments are those of `save`; how it was fitted is added to `training`. A `temperature` among it is checked.
    """
    from models.training import fixed_threads

    at_least(1, **shape)
    above_zero(**{name: value for name, value in training.items() if name == "temperature"})
    started = time.monotonic()
    labels = np.full(len(task.old), -1, np.int64) if task.labels is None else task.labels
    classes = torch.from_numpy(labels)
    with fixed_threads(task.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        network = NETWORKS[kind](task.old.shape[1], task.new.shape[1], **shape).train()

        def on_rows(source: Tensor, target: Tensor, rows: Tensor) -> Tensor:
            return loss(network, source, target, classes[rows])

        descent.run(network.parameters(), on_rows, task.old, task.new, task.seed, task.progress)
    return save(
        network,
        task.folder,
        kind=kind,
        shape=shape,
        predicts_uncertainty=predicts_uncertainty,
        dim=task.new.shape[1],
        training={
            "pairs": len(task.old),
            **descent.record(),
            **training,
            "seed": task.seed,
            "seconds": round(time.monotonic() - started, 2),
        },
        **task.artifact,
    )


def save(
    network: nn.Module,
    folder: Path,
    *,
    architecture: str,
    kind: str,
    shape: Mapping[str, Any],
    predicts_uncertainty: bool,
    name: str,
    modality: str,
    identity: Mapping[str, Any],
    dim: int,
    training: Mapping[str, Any],
) -> Manifest:
    """Writes a fitted network's artifact.

    Args:
        architecture: the adapter's name in the registry; `kind` the network's in NETWORKS, `shape` its further arguments.
        identity: source_fingerprint, target_fingerprint and source_dim; see `models.adapters.fit_adapter`.
    """
    options = {**identity, "network": kind, **shape, "predicts_uncertainty": predicts_uncertainty}
    return save_artifact(
        folder,
        network.state_dict(),
        kind="adapter",
        name=name,
        architecture=architecture,
        options=options,
        modality=modality,
        preprocessing={},
        dim=dim,
        training=training,
    )


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> NetworkAdapter:
    """The adapter of an artifact."""
    identity = ("source_fingerprint", "target_fingerprint", "source_dim", "network", "predicts_uncertainty")
    shape = {key: value for key, value in manifest.options.items() if key not in identity}
    network = NETWORKS[manifest.options["network"]](manifest.options["source_dim"], manifest.dim, **shape)
    network.load_state_dict(dict(tensors))
    return NetworkAdapter(manifest, network)
