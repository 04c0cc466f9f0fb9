"""Pairs of clips as the network sees them: cut by the sampler, resized, and changed in look; never in what the labels say.

After cropping, three clips in ten are turned by up to 10 degrees, jittered in colour, made grey or blurred; every other clip is
mirrored. All frames of a clip alike, each clip of a pair by itself.

A mirrored picture that is turned by 90 degrees looks like a mirrored one turned by 270: mirrored after turning, as released, the
two labels cannot be told apart where mirror images are as likely as pictures. So it is mirrored before it is turned, unless the
rules turn before cropping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.pretraining.cstp_loss import Labels
from models.pretraining.cstp_sampler import SOUND, Rules, Sample, cut, sample

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Looks:
    """How far a clip's look may be from its original: shares of clips, and largest changes; as released.

    Attributes:
        flip: of all clips, mirrored.
        strong: of all clips, those that the rest is for.
        rotate: degrees.
        jitter: of the strong, those with other brightness, contrast and saturation, each by a factor of 1 ± `colour`.
        grey, blur: of the strong.
    """

    flip: float = 0.5
    strong: float = 0.3
    rotate: float = 10.0
    jitter: float = 0.8
    colour: float = 0.4
    grey: float = 0.2
    blur: float = 0.5


@dataclass(frozen=True)
class Pairs:
    """`clips`: two tensors (B, D, channels, size, size) float32 in 0..1; `drawn`: what was drawn, and its labels."""

    clips: tuple[Tensor, Tensor]
    labels: Labels
    drawn: tuple[Sample, ...]


def draw_pairs(
    videos: Sequence[U8],
    rng: np.random.Generator,
    *,
    length: int,
    size: int,
    rules: Rules = SOUND,
    looks: Looks | None = None,
) -> Pairs:
    """A pair of clips of every video, (T, H, W, 1 or 3) uint8 each. `looks`: None: as they are.

    Raises ValueError as `sample`.
    """
    drawn = [sample(len(v), v.shape[2], v.shape[1], rng, length=length, rules=rules) for v in videos]
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for video, one in zip(videos, drawn, strict=True):
        for which, side in enumerate(sides):
            clip = _resized(cut(video, one, which, rules=rules), size)
            if looks is not None:
                upright = rules.turned_first or one.turns[which] % 2 == 0
                clip = _changed(clip, looks, rng, mirrored_axis=3 if upright else 2)
            side.append(clip)
    return Pairs((torch.stack(sides[0]), torch.stack(sides[1])), _labels(drawn), tuple(drawn))


def _labels(drawn: Sequence[Sample]) -> Labels:
    def of(value: Callable[[Sample], int]) -> Tensor:
        return torch.tensor([value(each) for each in drawn])

    turned = of(lambda each: each.turns[0]), of(lambda each: each.turns[1])
    return Labels(
        of(lambda each: each.spatial), of(lambda each: each.temporal), of(lambda e: e.playback), turned
    )


def _resized(clip: U8, size: int) -> Tensor:
    """(D, channels, size, size) float32 in 0..1; sides are stretched alone, as crops of all shapes become squares."""
    pixels = torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2))).float().div_(255)
    return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp_(0, 1)


def _changed(clip: Tensor, looks: Looks, rng: np.random.Generator, mirrored_axis: int) -> Tensor:
    if rng.random() < looks.flip:
        clip = clip.flip(mirrored_axis)
    if rng.random() >= looks.strong:
        return clip
    clip = _rotated(clip, math.radians(rng.uniform(-looks.rotate, looks.rotate)))
    if rng.random() < looks.jitter:
        clip = _jittered(clip, rng.uniform(1 - looks.colour, 1 + looks.colour, 3))
    if rng.random() < looks.grey:
        clip = _luma(clip).expand_as(clip)
    if rng.random() < looks.blur:
        clip = functional.avg_pool2d(clip, 3, 1, 1, count_include_pad=False)
    return clip


def _rotated(clip: Tensor, angle: float) -> Tensor:
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = functional.affine_grid(turn.expand(len(clip), -1, -1), list(clip.shape), align_corners=False)
    return functional.grid_sample(clip, grid, padding_mode="border", align_corners=False)


def _jittered(clip: Tensor, factors: npt.NDArray[np.float64]) -> Tensor:
    brightness, contrast, saturation = (float(each) for each in factors)
    clip = (clip * brightness).clamp(0, 1)
    clip = (clip.mean() + (clip - clip.mean()) * contrast).clamp(0, 1)
    grey = _luma(clip)
    return (grey + (clip - grey) * saturation).clamp(0, 1)


def _luma(clip: Tensor) -> Tensor:
    if clip.shape[1] == 1:
        return clip
    return (clip * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
