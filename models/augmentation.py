"""Augmentation of a whole batch at once, in torch, from an explicit generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """How far a training picture may differ from its original; all zero = not at all.

    Attributes:
        shift: largest shift, as a share of the edge.
        scale: largest change of size, each axis by itself: factor exp(u), u uniform in -scale..scale.
        rotate: largest rotation, degrees.
        shear: largest shear, as a tangent.
        stroke: share of pictures whose strokes get bolder or thinner by up to a pixel (dilation, erosion, blended).
        blur: share of pictures that are blurred by a 3x3 mean, blended.
        noise: largest standard deviation of Gaussian noise, pixels in 0..1.
        flip: True mirrors half of the pictures (photographs; never characters).
    """

    shift: float = 0.06
    scale: float = 0.12
    rotate: float = 6.0
    shear: float = 0.0
    stroke: float = 0.0
    blur: float = 0.25
    noise: float = 0.05
    flip: bool = False

    def __call__(
        self, pixels: Tensor, generator: torch.Generator, *, own: slice | None = None, of: int | None = None
    ) -> Tensor:
        """(B, channels, size, size) float32 0..1 -> the same shape; each picture drawn its own change.

        Of clips, (B, frames, channels, size, size), all frames of one are changed alike but for their noise.

        Where `pixels` are only the part `own` of a batch `of` so many, their changes are those that the whole batch would
        have given them, and the generator ends where it would end. It belongs to the device of `pixels`.
        """
        if pixels.dim() == 5:
            folded = self(pixels.flatten(1, 2), generator, own=own, of=of)
            return folded.view(pixels.shape)
        draws = _Draws(generator, len(pixels) if of is None else of, own or slice(None))
        pixels = self._moved(pixels, draws)
        if self.stroke:
            pixels = self._stroked(pixels, draws)
        if self.blur:
            amount = draws.chosen(self.blur)
            pixels = pixels + amount * (functional.avg_pool2d(pixels, 3, 1, 1) - pixels)
        if self.noise:
            spread = draws.uniform(1, 1, 1) * self.noise
            pixels = pixels + spread * draws.normal(*pixels.shape[1:])
        return pixels.clamp(0.0, 1.0)

    def _moved(self, pixels: Tensor, draws: _Draws) -> Tensor:
        if not (self.shift or self.scale or self.rotate or self.shear or self.flip):
            return pixels

        def uniform(limit: float) -> Tensor:
            return (draws.uniform() * 2 - 1) * limit

        angle = uniform(math.radians(self.rotate))
        wide, high = torch.exp(uniform(self.scale)), torch.exp(uniform(self.scale))
        shear = uniform(self.shear)
        if self.flip:
            wide = wide * torch.where(draws.uniform() < 0.5, -1.0, 1.0)
        cos, sin = torch.cos(angle), torch.sin(angle)
        # The grid maps output to input places; a shift of the edge's share s is 2s in grid units.
        first = torch.stack([cos * wide, shear * cos - sin * high, uniform(2 * self.shift)], dim=1)
        second = torch.stack([sin * wide, shear * sin + cos * high, uniform(2 * self.shift)], dim=1)
        grid = functional.affine_grid(
            torch.stack([first, second], dim=1), list(pixels.shape), align_corners=False
        )
        return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)

    def _stroked(self, pixels: Tensor, draws: _Draws) -> Tensor:
        amount = draws.chosen(self.stroke)
        bolder = draws.uniform(1, 1, 1) < 0.5
        dilated = functional.max_pool2d(pixels, 3, 1, 1)
        eroded = -functional.max_pool2d(-pixels, 3, 1, 1)
        return pixels + amount * (torch.where(bolder, dilated, eroded) - pixels)


class _Draws:
    """Random numbers for a part of a batch: drawn for the whole, so that the parts together have what the whole has."""

    def __init__(self, generator: torch.Generator, n: int, own: slice) -> None:
        self._generator, self._n, self._own = generator, n, own

    def uniform(self, *shape: int) -> Tensor:
        return self._rand(self._n, *shape)[self._own]

    def normal(self, *shape: int) -> Tensor:
        device = self._generator.device
        return torch.randn(self._n, *shape, generator=self._generator, device=device)[self._own]

    def chosen(self, share: float) -> Tensor:
        """(B, 1, 1, 1): 0 for most, a uniform amount in 0..1 for `share` of the pictures."""
        drawn = self._rand(2, self._n, 1, 1, 1)[:, self._own]
        return drawn[0] * (drawn[1] < share)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator, device=self._generator.device)
