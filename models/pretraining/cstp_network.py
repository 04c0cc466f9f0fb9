"""R(2+1)D with one block a stage, and the heads that are trained on it and then dropped.

A 3-D convolution is a 2-D one over the picture and a 1-D one over time, with so many channels between that both have as many
weights as the 3-D one would (Tran et al., CVPR 2018). Four stages of one residual block; the last three halve time, height and
width. At width 64: 14.37 million parameters and 512 dimensions, 25.43 million with all heads, as released. Width 8 runs on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.pretraining.cstp_loss import Predictions
from models.pretraining.cstp_sampler import RATES

WIDTH = 64
OUTPUTS = 5
"""Of every head: also of playback and rotation, which have four classes, as released."""


class R2Plus1D(nn.Module):
    """(B, 3, T, H, W) float32 in −1..1 → (B, 8 · width) float32. T and sides of 8 or more."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.dim = 8 * width
        self.stem = nn.Sequential(_factored(3, width, (3, 7, 7), (1, 2, 2)), nn.BatchNorm3d(width), nn.ReLU())
        self.stages = nn.Sequential(
            _Block(width, width, 1),
            _Block(width, 2 * width, 2),
            _Block(2 * width, 4 * width, 2),
            _Block(4 * width, 8 * width, 2),
        )

    def forward(self, clips: Tensor) -> Tensor:
        pooled: Tensor = self.stages(self.stem(clips)).mean(dim=(2, 3, 4))
        return pooled


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


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _factored(channels, out, (3, 3, 3), (stride,) * 3), nn.BatchNorm3d(out), nn.ReLU(),
            _factored(out, out, (3, 3, 3), (1, 1, 1)), nn.BatchNorm3d(out),
        )  # fmt: skip
        shorter = stride > 1
        self.shortcut = (
            nn.Sequential(_factored(channels, out, (1, 1, 1), (stride,) * 3), nn.BatchNorm3d(out))
            if shorter
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.residual(x))


def _factored(
    channels: int, out: int, kernel: tuple[int, int, int], stride: tuple[int, ...]
) -> nn.Sequential:
    time, height, width = kernel
    between = time * height * width * channels * out // (height * width * channels + time * out)
    over_picture = nn.Conv3d(
        channels,
        between,
        (1, height, width),
        (1, stride[1], stride[2]),
        (0, height // 2, width // 2),
        bias=False,
    )
    over_time = nn.Conv3d(between, out, (time, 1, 1), (stride[0], 1, 1), (time // 2, 0, 0), bias=False)
    return nn.Sequential(over_picture, nn.BatchNorm3d(between), nn.ReLU(), over_time)


def _mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def _head(dim: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, classes))
