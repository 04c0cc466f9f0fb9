"""Paired embeddings to fit an adapter on, from training pictures alone.

Both models have drawn their training classes together to tight clusters; an adapter fitted on those alone learns to map
clusters to clusters and says little about classes nobody trained on. So each pair is an augmented view, and most views are
composites of two pictures, cut along a random line or laid over each other (after CutMix, Yun et al., ICCV 2019): shapes
that belong to no training class, seen by both frozen models. No label is used, no gallery or query item is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.augmentation import Augmentation
from models.encoders import load_encoder
from models.encoders.images import TorchImageEncoder, to_float
from models.errors import UsageError
from models.training import fixed_threads, resized

_BATCH = 512
_CUT, _LAID_OVER = 0.4, 0.2  # shares of the pairs; the rest are single pictures


def embed_pairs(
    old: Path,
    new: Path,
    pixels: np.ndarray,
    count: int,
    augmentation: Augmentation,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` pairs: (count, d_old) and (count, d_new) float32, L2-normalised, of the same drawn views.

    Args:
        old, new: artifacts of image encoders in torch.
        pixels: (n, channels, size, size) uint8, training pictures as the new model's preprocessing gives them.

    Raises UsageError when a model is no image encoder in torch.
    """
    first, second = _torch_encoder(old), _torch_encoder(new)
    generator = torch.Generator().manual_seed(seed)
    source = torch.from_numpy(pixels)
    steps = steps_of(count)
    pairs: list[tuple[Tensor, Tensor]] = []
    with fixed_threads(threads), torch.inference_mode():
        for step in range(1, steps + 1):
            rows = torch.randint(len(source), (_BATCH,), generator=generator)
            views = composites(augmentation(to_float(source[rows]), generator), generator)
            pairs.append((first.embed(resized(views, first.preprocessing)), second.embed(views)))
            if progress is not None:
                progress(step, steps)
    return tuple(torch.cat(side)[:count].numpy() for side in zip(*pairs, strict=True))  # type: ignore[return-value]


def steps_of(count: int) -> int:
    """The steps in which `embed_pairs` makes `count` pairs."""
    return math.ceil(count / _BATCH)


def composites(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, channels, size, size): 40 % cut together with a partner along a line, 20 % the brighter of both, 40 % as is."""
    partners = pixels[torch.randperm(len(pixels), generator=generator)]
    angle, offset, kind = torch.rand(3, len(pixels), 1, 1, 1, generator=generator)
    edge = pixels.shape[-1]
    place = torch.arange(edge, dtype=torch.float32) - (edge - 1) / 2
    angle, offset = angle * 2 * math.pi, (offset - 0.5) * 0.6 * edge
    side = (
        place.view(1, 1, -1, 1) * torch.sin(angle) + place.view(1, 1, 1, -1) * torch.cos(angle) + offset > 0
    )
    cut, over = torch.where(side, pixels, partners), torch.maximum(pixels, partners)
    return torch.where(kind < _CUT, cut, torch.where(kind < _CUT + _LAID_OVER, over, pixels))


def _torch_encoder(folder: Path) -> TorchImageEncoder:
    encoder = load_encoder(folder)
    if not isinstance(encoder, TorchImageEncoder):
        raise UsageError(
            f"{folder} is no image encoder in torch: fit the adapter on a paired sample of a gallery"
        )
    return encoder
