"""A small convolutional network: strided 3x3 stages with batch norm, then one linear layer over the last grid.

Made for tiny pictures on a CPU: no pooling before the linear layer, so where a stroke lies is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.artifact import Manifest
from models.encoders.images import ImagePreprocessing, TorchImageEncoder

_GRID = 4


class ConvNet(nn.Module):
    """(B, channels, size, size) float32 0..1 -> (B, dim) float32, not normalised.

    Args:
        widths: channels of each stage; each stage halves the picture's edge.
        blocks: residual 3x3 convolutions after each stage.
        hidden: width of a hidden layer between the last grid (4x4) and the output; 0 = none.
    """

    def __init__(
        self,
        dim: int = 64,
        channels: int = 1,
        size: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        blocks: int = 0,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        incoming = channels
        for width in widths:
            stages += [nn.Conv2d(incoming, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
            stages += [_Residual(width) for _ in range(blocks)]
            incoming = width
        edge = size
        for _ in widths:
            edge = (edge + 1) // 2
        if edge > _GRID:
            stages.append(nn.AdaptiveAvgPool2d(_GRID))
            edge = _GRID
        self.stages = nn.Sequential(*stages)
        flat = incoming * edge * edge
        self.out: nn.Module = nn.Linear(flat, dim)
        if hidden:
            self.out = nn.Sequential(
                nn.Linear(flat, hidden, bias=False),
                nn.BatchNorm1d(hidden),
                nn.ReLU(True),
                nn.Linear(hidden, dim),
            )

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.out(torch.flatten(self.stages(pixels - 0.25), 1))
        return features


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = torch.relu(features + self.norm(self.conv(features)))
        return out


NETWORK = ConvNet


def build(options: Mapping[str, object], dim: int, preprocessing: ImagePreprocessing) -> nn.Module:
    """The network with fresh weights from torch's generator."""
    return ConvNet(dim=dim, channels=preprocessing.channels, size=preprocessing.size, **options)  # type: ignore[arg-type]


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> TorchImageEncoder:
    """The encoder of an artifact."""
    network = build(manifest.options, manifest.dim, ImagePreprocessing(**manifest.preprocessing))
    return TorchImageEncoder.restore(manifest, network, tensors)
