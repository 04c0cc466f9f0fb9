"""Bottleneck adapters and where they stand in a pre-norm transformer layer.

A(z) = z + W_up gelu(W_down z + b_down) + b_up, with W_down (r, d) and W_up (d, r). W_up and b_up are zero at first, so
that an adapted layer returns what the layer alone returns, bit for bit.

The sum without its z, the `delta`, is what a placement adds. With tokens t, attention and MLP as the layer has them:

- serial: one adapter a layer, behind it: A(layer(t)) (Houlsby et al., ICML 2019, one instead of two)
- parallel: one adapter a layer, beside the MLP: u + mlp(norm u) + delta(norm u) (AdaptFormer: Chen et al., NeurIPS 2022)
- symmetric: two adapters a layer, beside either half: u = t + attention(norm t) + delta_1(norm t), then as parallel

What TaCA's authors call a symmetric adapter is not public; the last is our reading of the name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoders.vit import Block
from models.errors import UsageError

PLACEMENTS: dict[str, int] = {"serial": 1, "parallel": 1, "symmetric": 2}
"""Placement -> adapters a layer."""


class Bottleneck(nn.Module):
    """(…, width) -> (…, width), what is added to z; all zero at first.

    Args:
        width: d, length of a token.
        rank: r, width of the bottleneck.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        delta: Tensor = self.up(functional.gelu(self.down(tokens)))
        return delta


class LayerAdapters(nn.Module):
    """The adapters of one layer, which is handed over at each call: the layer stays its owner's.

    Args:
        placement: a name in PLACEMENTS.
    """

    def __init__(self, placement: str, width: int, rank: int) -> None:
        super().__init__()
        self.placement = placement
        self.bottlenecks = nn.ModuleList(Bottleneck(width, rank) for _ in range(adapters_a_layer(placement)))

    def forward(self, block: Block, tokens: Tensor) -> Tensor:
        """(B, T, width) tokens through `block` and its adapters -> (B, T, width)."""
        if self.placement == "serial":
            tokens = block(tokens)
            serial: Tensor = tokens + self.bottlenecks[0](tokens)
            return serial
        normed = block.norm_attention(tokens)
        tokens = tokens + block.attention(normed)
        if self.placement == "symmetric":
            tokens = tokens + self.bottlenecks[0](normed)
        normed = block.norm_mlp(tokens)
        out: Tensor = tokens + block.mlp(normed) + self.bottlenecks[-1](normed)
        return out


def adapters_a_layer(placement: str) -> int:
    """How many adapters a placement has in one layer. Raises UsageError for an unknown placement."""
    if placement not in PLACEMENTS:
        raise UsageError(
            f"there is no placement {placement!r} of adapters: choose one of {', '.join(PLACEMENTS)}"
        )
    return PLACEMENTS[placement]


def adapter_parameters(placement: str, layers: int, width: int, rank: int) -> int:
    """Parameters of all adapters: layers x adapters a layer x (2 d r, and d + r biases)."""
    return layers * adapters_a_layer(placement) * (2 * width * rank + width + rank)


def is_identity(adapters: nn.Module) -> bool:
    """Whether no adapter adds anything yet: every W_up and b_up below `adapters` is zero."""
    ups = [layer.up for layer in adapters.modules() if isinstance(layer, Bottleneck)]
    with torch.no_grad():
        return not any(bool(part.any()) for up in ups for part in (up.weight, up.bias))
