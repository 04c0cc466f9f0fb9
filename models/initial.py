"""Weights to begin a training with: those of another model of the same architecture, such as a pre-trained backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.artifact import load_artifact
from models.encoders.images import PROTOTYPES
from models.errors import UsageError

_LAST = "out."
"""What the names of the last layer begin with: it leads to the embedding, whose length may be another one."""


def initial_weights(folder: Path, architecture: str) -> dict[str, Tensor]:
    """The weights of a model, by name. Raises UsageError for another architecture, ArtifactError as `load_artifact`."""
    manifest, tensors = load_artifact(folder)
    if manifest.architecture != architecture:
        raise UsageError(
            f"{manifest.name!r} is a {manifest.architecture}, a {architecture} cannot begin with its weights: "
            "name a model of the same architecture."
        )
    return {name: tensor for name, tensor in tensors.items() if name != PROTOTYPES}


def begin_with(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights into a network, in place; its last layer stays as drawn where the other has none of that shape.

    Raises UsageError where any other layer has no weights of its shape.
    """
    own: dict[str, Any] = network.state_dict()
    odd = [
        name
        for name, tensor in own.items()
        if not name.startswith(_LAST) and (name not in weights or weights[name].shape != tensor.shape)
    ]
    if odd:
        raise UsageError(
            f"the weights to begin with do not fit the network at {odd[0]} ({len(odd)} of {len(own)} tensors): "
            "give it the same --network options and --size, or begin without --init."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in weights and weights[name].shape == tensor.shape:
                tensor.copy_(weights[name])
