"""A frozen vision transformer that answers in another model's space: its own layers, adapters in each, a map behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from models.encoders.vit import ViT
from models.errors import UsageError
from models.taca.bottleneck import PLACEMENTS, LayerAdapters, adapter_parameters
from models.taca.space import SpaceMap, map_parameters

MAP_ONLY = "none"
"""The placement of no adapters: the map alone is trained. A rival, and the ablation of the adapters."""


class AdaptedViT(nn.Module):
    """(B, channels, size, size) float32 0..1 -> (B, dim) float32 in the old space, not normalised.

    The backbone never learns: its parameters want no gradient, and it has no state that a forward pass changes.

    Args:
        backbone: the new model's network, whose `out` has `source_dim` outputs.
        dim: of the old space.
        placement: a name in PLACEMENTS, or MAP_ONLY.
        rank: of each adapter; 0 with MAP_ONLY, at least 1 otherwise.
        map_hidden: hidden units of the map's MLP; 0: a linear map.

    Raises UsageError for an unknown placement, and for sizes that do not go with it.
    """

    def __init__(self, backbone: ViT, dim: int, *, placement: str, rank: int, map_hidden: int = 0) -> None:
        super().__init__()
        if placement != MAP_ONLY and placement not in PLACEMENTS:
            known = ", ".join((*PLACEMENTS, MAP_ONLY))
            raise UsageError(f"there is no placement {placement!r} of adapters: choose one of {known}")
        if (rank < 1) != (placement == MAP_ONLY) or rank < 0 or map_hidden < 0:
            raise UsageError(
                f"placement {placement} cannot have rank {rank} and map_hidden {map_hidden}: a rank is at least 1, "
                f"and 0 with {MAP_ONLY}"
            )
        self.backbone = backbone.requires_grad_(False)
        width = backbone.out.in_features
        layers = 0 if placement == MAP_ONLY else len(backbone.blocks)
        self.adapters = nn.ModuleList(LayerAdapters(placement, width, rank) for _ in range(layers))
        self.map = SpaceMap(backbone.out.out_features, dim, map_hidden)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        mapped: Tensor = self.map(self.features(pixels))
        return mapped

    def features(self, pixels: Tensor) -> Tensor:
        """(B, source_dim) float32, L2-normalised: what the adapted backbone says, before the map.

        While no adapter has learned, it is the new model's own embedding, bit for bit.
        """
        if not self.adapters:
            return self.native(pixels)
        tokens = self.backbone.tokens(pixels)
        for block, adapters in zip(self.backbone.blocks, self.adapters, strict=True):
            tokens = adapters(block, tokens)
        return functional.normalize(self.backbone.pooled(tokens), dim=1)

    def native(self, pixels: Tensor) -> Tensor:
        """(B, source_dim) float32, L2-normalised: the new model's own embedding, without adapters and map."""
        return functional.normalize(self.backbone(pixels), dim=1)

    def trained(self) -> list[nn.Parameter]:
        """What is learned: the parameters of adapters and map."""
        return [*self.adapters.parameters(), *self.map.parameters()]


def trained_parameters(
    network: Mapping[str, Any], source_dim: int, dim: int, *, placement: str, rank: int, map_hidden: int = 0
) -> int:
    """How many parameters an `AdaptedViT` trains, by arithmetic.

    Args:
        network: the backbone's options, of which `width` and `depth` count.
        source_dim, dim: d_n and d_o.
    """
    adapters = 0
    if placement != MAP_ONLY:
        adapters = adapter_parameters(placement, network["depth"], network["width"], rank)
    return adapters + map_parameters(source_dim, dim, map_hidden)
