"""Pairs of clips whose overlap is the label: the sampler of contrastive spatio-temporal pretext learning (arXiv 2112.08913).

Two clips of D frames from one video share a playback step s of 1, 2, 4 or 8 (label 0..3, as far as the video is long enough), so
each spans τ = (D − 1)s. They overlap in time by a rate γ of 1, 0.8, 0.6, 0.4 or 0.2 (labels 0..4): the second starts
int((1 − γ)τ) before or after the first. They overlap in space by another such rate: two crops of one size, at a corner, the
overlap's width drawn between γw and w and its height int(γwh / width). Each is turned by 0, 90, 180 or 270 degrees (label
0..3). All is drawn by the generator that is handed in.

Three rules differ between what was released and what the labels mean; each is a switch of `Rules`:

- `labels_redrawn`: the release draws a new label whenever geometry is refused, so easy labels win: at 320 x 240 two thirds of the
  spatial labels are 0, and a constant guess is right as often. Off: the label is drawn once, crops until they fit it.
- `second_start`: the release's LMDB loaders read the second clip at the first one's start, so its temporal label says nothing.
- `turned_first`: turned before cropping, the crops of clips that differ by 90 degrees are cut from different frames by the same
  coordinates: many leave the frame, and the label describes no shared content. Off: cropped, then turned.

`RELEASED` has all three; `PUBLISHED` the last alone (whether the paper turns first could not be read, its figure does); `SOUND`,
the default, none. `TIME_ALONE` is ours and no way to pre-train: both clips are whole frames, upright, so that nothing but time
tells them apart (`whole`); it shows whether the temporal label can be learned at all. Jitter, blur and flips after it belong to
the training, and are not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

RATES = (1.0, 0.8, 0.6, 0.4, 0.2)
STEPS = (1, 2, 4, 8)
TURNS = (0, 90, 180, 270)  # degrees, against the clock
LEAST_AREA = 0.2
ASPECTS = (3 / 4, 4 / 3)
LEAST_SIDE = 16
"""Pixels of a frame's shorter side: below, a fifth of a crop is no whole pixel."""
MOST_ELONGATED = 3.0
"""Longer over shorter side of a frame. In a narrow one a crop of the least area has no room: the release draws for ever."""


@dataclass(frozen=True)
class Rules:
    """Switches; what each means is said at the top of this file."""

    labels_redrawn: bool = False
    second_start: bool = True
    turned_first: bool = False
    whole: bool = False


SOUND = Rules()
PUBLISHED = Rules(turned_first=True)
RELEASED = Rules(labels_redrawn=True, second_start=False, turned_first=True)
TIME_ALONE = Rules(whole=True)


@dataclass(frozen=True)
class Box:
    """A crop: left, top, width and height in pixels; it may leave the frame only where turned first."""

    left: int
    top: int
    width: int
    height: int

    def shared(self, other: Box) -> float:
        """Share of this crop's area that the other covers too, 0 to 1."""
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        down = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        return max(0, across) * max(0, down) / (self.width * self.height)

    def inside(self, width: int, height: int) -> bool:
        """Whether it lies wholly in a frame of this size."""
        return (
            self.left >= 0
            and self.top >= 0
            and self.left + self.width <= width
            and self.top + self.height <= height
        )


@dataclass(frozen=True)
class Sample:
    """What to cut, and its labels.

    Attributes:
        frames: two (D,) int64, indices into the video.
        starts: of the two clips, as the temporal label means them; with `second_start` off the second is not read there.
        temporal, spatial, playback, turns: labels; turns of each clip.
        boxes: of each clip, in the frame as it is, or as turned where turned first.
    """

    frames: tuple[I64, I64]
    starts: tuple[int, int]
    temporal: int
    spatial: int
    playback: int
    turns: tuple[int, int]
    boxes: tuple[Box, Box]


def sample(
    frames: int, width: int, height: int, rng: np.random.Generator, *, length: int = 16, rules: Rules = SOUND
) -> Sample:
    """Draw a pair of clips of a video of `frames` frames of width x height pixels, each of `length` frames.

    A video no longer than the span gives two equal clips that begin anew at its end, with temporal label 0.

    Raises ValueError for no frame, a clip of fewer than two frames, a side below LEAST_SIDE, or a frame longer than
    MOST_ELONGATED times its other side.
    """
    short, long = sorted((width, height))
    if frames < 1 or length < 2 or short < LEAST_SIDE or long > MOST_ELONGATED * short:
        raise ValueError(
            f"cannot cut clips of {length} frames from {frames} frames of {width} x {height} pixels"
        )
    most = math.floor(math.log2(frames / (length - 1)))
    playback = int(rng.integers(0, max(0, min(len(STEPS) - 1, most)) + 1))
    step = STEPS[playback]
    turns = (0, 0) if rules.whole else (int(rng.integers(4)), int(rng.integers(4)))
    span = (length - 1) * step
    if frames <= span:
        wrapped = np.arange(0, length * step, step, dtype=np.int64)
        both, starts, temporal = (_wrap(wrapped, frames, step),) * 2, (0, 0), 0
    else:
        temporal, starts = _starts(frames - 1 - span, span, rng, rules)
        within = np.arange(0, span + 1, step, dtype=np.int64)
        read_at = starts if rules.second_start else (starts[0], starts[0])
        both = (within + read_at[0], within + read_at[1])
    sizes = [(height, width) if rules.turned_first and turn % 2 else (width, height) for turn in turns]
    spatial, boxes = _boxes(sizes[0], sizes[1], rng, rules)
    return Sample(both, starts, temporal, spatial, playback, turns, boxes)


def cut(video: U8, drawn: Sample, which: int, *, rules: Rules = SOUND) -> U8:
    """(D, h, w, C) uint8: clip 0 or 1 of a sample, out of (T, H, W, C). What lies outside the frame is black."""
    clip = video[drawn.frames[which]]
    box, turn = drawn.boxes[which], drawn.turns[which]
    if rules.turned_first:
        return _cropped(np.rot90(clip, turn, axes=(1, 2)), box)
    return np.ascontiguousarray(np.rot90(_cropped(clip, box), turn, axes=(1, 2)))


def _wrap(indices: I64, frames: int, step: int) -> I64:
    """From 0 in steps, and from 0 again where the video ends."""
    return np.asarray(indices // step % -(-frames // step) * step, np.int64)


def _starts(last: int, span: int, rng: np.random.Generator, rules: Rules) -> tuple[int, tuple[int, int]]:
    """Temporal label and both starts, 0 to `last`."""
    shifts = [int((1 - rate) * span) for rate in RATES]
    if rules.labels_redrawn:
        first = int(rng.integers(last + 1))
        while True:
            label = int(rng.integers(len(RATES)))
            second = first + shifts[label] * (1 if rng.integers(2) else -1)
            if 0 <= second <= last:
                return label, (first, second)
    # A short video has no room for some labels: any of the others, each as often.
    label = int(rng.choice([at for at, shift in enumerate(shifts) if shift <= last]))
    early = int(rng.integers(last - shifts[label] + 1))
    late = early + shifts[label]
    return label, (early, late) if rng.integers(2) else (late, early)


def _boxes(
    first: tuple[int, int], second: tuple[int, int], rng: np.random.Generator, rules: Rules
) -> tuple[int, tuple[Box, Box]]:
    """Spatial label and both crops, for frames of these (width, height)."""
    if rules.whole:
        return 0, (Box(0, 0, *first), Box(0, 0, *second))
    if rules.labels_redrawn:
        box = _first_box(*first, rng)
        while True:
            label = int(rng.integers(len(RATES)))
            other, fits = _second_box(box, RATES[label], *second, rng, rules)
            if fits:
                return label, (box, other)
    label = int(rng.integers(len(RATES)))
    while True:  # a large first crop leaves no room for a small overlap: both are drawn anew
        box = _first_box(*first, rng)
        other, fits = _second_box(box, RATES[label], *second, rng, rules)
        if fits:
            return label, (box, other)


def _first_box(width: int, height: int, rng: np.random.Generator) -> Box:
    while True:
        area = rng.uniform(LEAST_AREA, 1) * width * height
        aspect = rng.uniform(*ASPECTS)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:
            w, h = h, w
        if w <= width and h <= height:
            return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)


def _second_box(
    box: Box, rate: float, width: int, height: int, rng: np.random.Generator, rules: Rules
) -> tuple[Box, bool]:
    """The crop that shares `rate` of the first at a corner, and whether it fits its frame."""
    # The release rounds the least width down, and the overlap may then be higher than the crop: rounded up it never is.
    least = int(rate * box.width) if rules.labels_redrawn else math.ceil(rate * box.width - 1e-9)
    across = int(rng.integers(least, box.width + 1))
    down = int(rate * box.width * box.height / across)
    corner = int(rng.integers(4))
    left = box.left + (box.width - across) * (1 if corner % 2 else -1)
    top = box.top + (box.height - down) * (1 if corner >= 2 else -1)
    other = Box(left, top, box.width, box.height)
    if not rules.turned_first:
        return other, other.inside(width, height)
    # As released: only the two sides are looked at towards which the crop was moved. In frames of one size that is enough.
    fits_across = left + box.width <= width if corner % 2 else left >= 0
    fits_down = top + box.height <= height if corner >= 2 else top >= 0
    return other, fits_across and fits_down


def _cropped(clip: U8, box: Box) -> U8:
    height, width = clip.shape[1:3]
    found = np.zeros((len(clip), box.height, box.width, clip.shape[3]), np.uint8)
    left, top = max(0, box.left), max(0, box.top)
    right, bottom = min(width, box.left + box.width), min(height, box.top + box.height)
    if left < right and top < bottom:
        found[:, top - box.top : bottom - box.top, left - box.left : right - box.left] = clip[
            :, top:bottom, left:right
        ]
    return found
