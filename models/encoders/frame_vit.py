"""A vision transformer that looks at every frame of a clip by itself; the mean of its answers is the clip's. Order is lost."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.artifact import Manifest
from models.encoders.videos import TorchVideoEncoder, VideoPreprocessing
from models.encoders.vit import ViT


class FrameViT(ViT):
    """(B, frames, channels, size, size) float32 0..1 -> (B, dim) float32, not normalised. Options: those of `ViT`."""

    def forward(self, clips: Tensor) -> Tensor:
        """See the class."""
        of_frames = super().forward(clips.flatten(0, 1))
        return of_frames.view(*clips.shape[:2], -1).mean(dim=1)


NETWORK = ViT
"""Whose options those of the network are."""


def build(options: Mapping[str, object], dim: int, preprocessing: VideoPreprocessing) -> nn.Module:
    """The network with fresh weights from torch's generator."""
    return FrameViT(dim=dim, channels=preprocessing.channels, size=preprocessing.size, **options)  # type: ignore[arg-type]


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> TorchVideoEncoder:
    """The encoder of an artifact. Raises ValueError for the weights of another norm than the manifest's."""
    network = build(manifest.options, manifest.dim, VideoPreprocessing(**manifest.preprocessing))
    return TorchVideoEncoder.restore(manifest, network, tensors)
