"""R(2+1)D with one block a stage: a 3-D convolution as a 2-D one over the picture and a 1-D one over time.

Between the two are so many channels that both have as many weights as the 3-D one would (Tran et al., CVPR 2018). Four stages of
one residual block; the last three halve time, height and width. At width 64: 14.37 million parameters and 512 dimensions.
Width 8 runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.artifact import Manifest
from models.encoders.videos import TorchVideoEncoder, VideoPreprocessing

WIDTH = 64
LEAST = 8
"""Frames and edge: halved three times, a frame and a pixel are left."""


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


class ClipEncoder(nn.Module):
    """(B, frames, channels, size, size) float32 0..1 -> (B, dim) float32, not normalised.

    A linear layer leads from the backbone's 8 · `width` to `dim` numbers; where both are equal there is none, and the backbone's
    own features are the answer, as after pre-training.
    """

    def __init__(self, dim: int = 64, width: int = 8) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be 1 or more, not {width}")
        self.backbone = R2Plus1D(width)
        self.out = nn.Identity() if dim == self.backbone.dim else nn.Linear(self.backbone.dim, dim)

    def forward(self, clips: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.out(self.backbone(as_input(clips)))
        return found


def as_input(clips: Tensor) -> Tensor:
    """(B, T, channels, H, W) in 0..1 as the backbone takes it: (B, 3, T, H, W) in −1..1, grey in all three channels."""
    return (clips.transpose(1, 2) * 2 - 1).expand(-1, 3, -1, -1, -1)


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


NETWORK = ClipEncoder


def build(options: Mapping[str, object], dim: int, preprocessing: VideoPreprocessing) -> nn.Module:
    """The network with fresh weights from torch's generator. Raises ValueError for clips that it halves away."""
    if min(preprocessing.frames, preprocessing.size) < LEAST:
        raise ValueError(
            f"clips of {preprocessing.frames} frames of {preprocessing.size} pixels; both must be {LEAST} or more"
        )
    return ClipEncoder(dim=dim, **options)  # type: ignore[arg-type]


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> TorchVideoEncoder:
    """The encoder of an artifact."""
    network = build(manifest.options, manifest.dim, VideoPreprocessing(**manifest.preprocessing))
    return TorchVideoEncoder.restore(manifest, network, tensors)
