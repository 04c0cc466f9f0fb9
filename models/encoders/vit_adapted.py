"""A vision transformer with adapters inside and a map behind: it emits another, older model's space (models/taca).

Options: `network` (the backbone's), `source_dim`, `placement`, `rank`, `map_hidden`, and the fingerprints of the model it was
made of (`source_fingerprint`) and of the one whose space it emits (`space_fingerprint`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.artifact import Manifest
from models.encoders import vit
from models.encoders.images import ImagePreprocessing, TorchImageEncoder
from models.errors import UsageError
from models.taca.network import AdaptedViT


def build(options: Mapping[str, Any], dim: int, preprocessing: ImagePreprocessing) -> nn.Module:
    """The network with fresh weights from torch's generator. Raises ValueError for options that cannot be."""
    backbone = vit.build(options["network"], options["source_dim"], preprocessing)
    assert isinstance(backbone, vit.ViT)
    shape = {name: options[name] for name in ("placement", "rank", "map_hidden")}
    try:
        return AdaptedViT(backbone, dim, **shape)
    except UsageError as error:
        raise ValueError(str(error)) from error


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> TorchImageEncoder:
    """The encoder of an artifact."""
    network = build(manifest.options, manifest.dim, ImagePreprocessing(**manifest.preprocessing))
    return TorchImageEncoder.restore(manifest, network, tensors)
