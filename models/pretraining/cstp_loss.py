"""The loss of contrastive spatio-temporal pretext learning, and the momentum copy it looks at.

    contrastive = (2 − 2 cos(q(z1), z'2)) + (2 − 2 cos(q(z2), z'1))       z' of the momentum copy, without gradient
    total = 0.1 · contrastive + spatial + temporal + playback + rotation  each a cross-entropy; the last two of both clips

No negatives: two clips of one video are pulled together, nothing is pushed apart. The momentum copy starts as an exact copy and
takes buffers (batch norms' statistics) over; the release starts it from other weights and leaves its buffers alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MOMENTUM = 0.996


@dataclass(frozen=True)
class Weights:
    """Of each part in the total."""

    contrastive: float = 0.1
    spatial: float = 1.0
    temporal: float = 1.0
    playback: float = 1.0
    rotation: float = 1.0


@dataclass(frozen=True)
class Predictions:
    """What the heads say of B pairs.

    Attributes:
        spatial, temporal: (B, rates) logits, of both clips together.
        playback, rotation: (B, classes) logits of each clip.
    """

    spatial: Tensor
    temporal: Tensor
    playback: tuple[Tensor, Tensor]
    rotation: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Labels:
    """(B,) int64 each; `rotation` of each clip, the others of the pair."""

    spatial: Tensor
    temporal: Tensor
    playback: Tensor
    rotation: tuple[Tensor, Tensor]


def contrastive(predicted: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over the batch, 0 to 8: both directions, 0 to 4 each.

    Args:
        predicted: (B, d) of clip 1 and 2, by the online network and its predictor.
        targets: (B, d) of clip 1 and 2, by the momentum copy; no gradient goes into them.
    """
    there = _distance(predicted[0], targets[1])
    back = _distance(predicted[1], targets[0])
    return (there + back).mean()


def total(pair_loss: Tensor, said: Predictions, labels: Labels, weights: Weights | None = None) -> Tensor:
    """The weighted sum, a scalar. `pair_loss`: what `contrastive` returned."""
    w = weights or Weights()
    entropy = functional.cross_entropy
    both_playbacks = sum(entropy(each, labels.playback) for each in said.playback)
    both_turns = sum(entropy(each, own) for each, own in zip(said.rotation, labels.rotation, strict=True))
    return (
        w.contrastive * pair_loss
        + w.spatial * entropy(said.spatial, labels.spatial)
        + w.temporal * entropy(said.temporal, labels.temporal)
        + w.playback * both_playbacks
        + w.rotation * both_turns
    )


def momentum_copy(online: nn.Module) -> nn.Module:
    """An equal network that no gradient reaches."""
    target = copy.deepcopy(online)
    return target.requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float = MOMENTUM) -> None:
    """target ← momentum · target + (1 − momentum) · online, in place; buffers are taken over.

    Raises ValueError for a momentum outside [0, 1], or networks of other parts.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"a momentum lies in 0..1, not {momentum}")
    own, theirs = dict(target.named_parameters()), dict(online.named_parameters())
    buffers, new = dict(target.named_buffers()), dict(online.named_buffers())
    if own.keys() != theirs.keys() or buffers.keys() != new.keys():
        raise ValueError("the momentum copy has other parts than the network it follows")
    for name, parameter in own.items():
        parameter.mul_(momentum).add_(theirs[name], alpha=1 - momentum)
    for name, buffer in buffers.items():
        buffer.copy_(new[name])


def _distance(predicted: Tensor, target: Tensor) -> Tensor:
    return 2 - 2 * functional.cosine_similarity(predicted, target.detach(), dim=1)
