"""A small vision transformer in plain torch (Dosovitskiy et al., ICLR 2021; pre-norm, mean of the patch tokens)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.artifact import Manifest
from models.encoders.images import ImagePreprocessing, TorchImageEncoder


class ViT(nn.Module):
    """(B, channels, size, size) float32 0..1 -> (B, dim) float32, not normalised.

    Args:
        patch: edge of a patch in pixels; must divide `size`.
        width: length of a token; a multiple of `heads`.
        depth: transformer blocks.
        heads: attention heads.
    """

    def __init__(
        self,
        dim: int = 64,
        channels: int = 1,
        size: int = 32,
        patch: int = 8,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if size % patch or width % heads:
            raise ValueError(
                f"patch {patch} must divide size {size}, heads {heads} must divide width {width}"
            )
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        tokens = self.tokens(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return self.pooled(tokens)

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B, T, width): what the first block gets."""
        tokens: Tensor = self.patches(pixels - 0.25).flatten(2).transpose(1, 2) + self.positions
        return tokens

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, dim) float32 from what the last block returned."""
        features: Tensor = self.out(self.norm(tokens).mean(dim=1))
        return features


class Block(nn.Module):
    """One pre-norm layer: (B, T, width) tokens -> (B, T, width). Its two halves can be called one by one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        tokens = tokens + self.attention(self.norm_attention(tokens))
        out: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return out

    def attention(self, normed: Tensor) -> Tensor:
        """(B, T, width), what the first half adds to its tokens, from the same tokens normalised."""
        B, T, D = normed.shape
        q, k, v = self.qkv(normed).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D)
        out: Tensor = self.mix(attended)
        return out


def build(options: Mapping[str, object], dim: int, preprocessing: ImagePreprocessing) -> nn.Module:
    """The network with fresh weights from torch's generator."""
    return ViT(dim=dim, channels=preprocessing.channels, size=preprocessing.size, **options)  # type: ignore[arg-type]


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> TorchImageEncoder:
    """The encoder of an artifact."""
    network = build(manifest.options, manifest.dim, ImagePreprocessing(**manifest.preprocessing))
    return TorchImageEncoder.restore(manifest, network, tensors)
