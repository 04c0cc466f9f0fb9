"""A small vision transformer in plain torch (Dosovitskiy et al., ICLR 2021; pre-norm, mean of the patch tokens).

Its norm is layer norm, or in the first blocks dynamic token normalisation (`models.encoders.normalisation`). There is no
class token: all tokens are of the grid, in every block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.artifact import Manifest
from models.encoders.images import ImagePreprocessing, TorchImageEncoder
from models.encoders.normalisation import DynamicTokenNorm

NORMS = ("layer", "dtn", "dtn_var")
_RELEASED: dict[str, object] = {"dtn_at": "both", "pre_rms": True, "gates": "two", "unbiased_var": True}
_OF_DTN = "position.weight"
"""What the weights of a dynamic token normalisation have and those of a layer norm lack."""


class ViT(nn.Module):
    """(B, channels, size, size) float32 0..1 -> (B, dim) float32, not normalised.

    Args:
        patch: edge of a patch in pixels; must divide `size`.
        width: length of a token; a multiple of `heads`.
        depth: transformer blocks.
        heads: attention heads.
        norm: "layer", "dtn" or "dtn_var" (centred as by layer norm, only the variance is mixed).
        dtn_layers: how many first blocks have the norm that is no layer norm; None: all.
        dtn_at: "both", before attention and MLP, or "attention" alone.
        pre_rms, gates, unbiased_var: of DynamicTokenNorm; as released, or as published: False, "one", False.

    Raises ValueError for options that cannot be.
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
        norm: str = "layer",
        dtn_layers: int | None = None,
        dtn_at: str = "both",
        pre_rms: bool = True,
        gates: str = "two",
        unbiased_var: bool = True,
    ) -> None:
        super().__init__()
        if min(patch, width, depth, heads) < 1 or size % patch or width % heads:
            raise ValueError(
                f"patch {patch} must divide size {size}, heads {heads} must divide width {width}, and depth be 1 or more"
            )
        of_dtn = {"dtn_at": dtn_at, "pre_rms": pre_rms, "gates": gates, "unbiased_var": unbiased_var}
        _check_norm(norm, dtn_layers, depth, of_dtn)
        layer_norm: _MakeNorm = partial(nn.LayerNorm, width)
        dynamic: _MakeNorm = partial(
            DynamicTokenNorm,
            width,
            heads,
            size // patch,
            variance_only=norm == "dtn_var",
            pre_rms=pre_rms,
            gates=gates,
            unbiased_var=unbiased_var,
        )
        count = 0 if norm == "layer" else depth if dtn_layers is None else dtn_layers
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                dynamic if place < count else layer_norm,
                dynamic if place < count and dtn_at == "both" else layer_norm,
            )
            for place in range(depth)
        )
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


_MakeNorm = Callable[[], nn.Module]


class Block(nn.Module):
    """One pre-norm layer: (B, T, width) tokens -> (B, T, width). Its two halves can be called one by one."""

    def __init__(self, width: int, heads: int, norm_attention: _MakeNorm, norm_mlp: _MakeNorm) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = norm_attention()
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm_mlp = norm_mlp()
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


def _check_norm(norm: str, dtn_layers: int | None, depth: int, of_dtn: Mapping[str, object]) -> None:
    """Raises ValueError for values that cannot be, and for options of a norm that is not there."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}")
    changed = [name for name, value in of_dtn.items() if value != _RELEASED[name]]
    if norm == "layer" and (changed or dtn_layers is not None):
        raise ValueError(f"{(changed or ['dtn_layers'])[0]} belongs to norm dtn or dtn_var, not to layer")
    for name in ("pre_rms", "unbiased_var"):
        if not isinstance(of_dtn[name], bool):
            raise ValueError(f"{name} must be true or false, not {of_dtn[name]!r}")
    if of_dtn["dtn_at"] not in ("both", "attention"):
        raise ValueError(f"dtn_at must be both or attention, not {of_dtn['dtn_at']!r}")
    if dtn_layers is not None and not 1 <= dtn_layers <= depth:
        raise ValueError(f"dtn_layers must be 1 to depth {depth}, not {dtn_layers!r}")


NETWORK = ViT


def build(options: Mapping[str, object], dim: int, preprocessing: ImagePreprocessing) -> nn.Module:
    """The network with fresh weights from torch's generator."""
    return ViT(dim=dim, channels=preprocessing.channels, size=preprocessing.size, **options)  # type: ignore[arg-type]


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> TorchImageEncoder:
    """The encoder of an artifact. Raises ValueError for the weights of another norm than the manifest's."""
    network = build(manifest.options, manifest.dim, ImagePreprocessing(**manifest.preprocessing))
    dynamic, own = (any(key.endswith(_OF_DTN) for key in keys) for keys in (network.state_dict(), tensors))
    if dynamic != own:
        said, is_ = ("dynamic token normalisation", "layer norm")[:: 1 if dynamic else -1]
        raise ValueError(
            f"its manifest says {said}, but its weights are of {is_}, and neither can be opened as the other: "
            "another norm is another model, reached by training and an upgrade"
        )
    return TorchImageEncoder.restore(manifest, network, tensors)
