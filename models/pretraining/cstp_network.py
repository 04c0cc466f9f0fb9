"""The heads that contrastive spatio-temporal pretext learning trains on an R(2+1)D backbone, and then drops.

At width 64 the backbone has 14.37 million parameters and 512 dimensions; with all heads 25.43 million, as released.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.encoders.r2plus1d import WIDTH, R2Plus1D
from models.pretraining.cstp_loss import Predictions
from models.pretraining.cstp_sampler import RATES

OUTPUTS = 5
"""Of every head: also of playback and rotation, which have four classes, as released."""


class CstpNetwork(nn.Module):
    """The network that is trained: backbone, projector, predictor and four heads. Its momentum copy needs `embed` alone."""

    def __init__(self, width: int = WIDTH, hidden: int | None = None) -> None:
        super().__init__()
        self.backbone = R2Plus1D(width)
        dim = self.backbone.dim
        between = 8 * dim if hidden is None else hidden
        self.projector, self.predictor = _mlp(dim, between, dim), _mlp(dim, between, dim)
        self.spatial, self.temporal = (_head(2 * dim, len(RATES)) for _ in range(2))
        self.playback, self.rotation = (_head(dim, OUTPUTS) for _ in range(2))

    def embed(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W) → (B, dim): the projection, which the momentum copy gives as target."""
        projected: Tensor = self.projector(self.backbone(clips))
        return projected

    def forward(self, first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], Predictions]:
        """Of two clips of B videos: what each predicts of the other's target, (B, dim) each, and the heads' logits."""
        features = self.backbone(first), self.backbone(second)
        predicted = [self.predictor(self.projector(each)) for each in features]
        together = torch.cat(features, dim=1)
        said = Predictions(
            self.spatial(together),
            self.temporal(together),
            (self.playback(features[0]), self.playback(features[1])),
            (self.rotation(features[0]), self.rotation(features[1])),
        )
        return (predicted[0], predicted[1]), said


def _mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def _head(dim: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, classes))
