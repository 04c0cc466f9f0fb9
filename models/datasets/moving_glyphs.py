"""Moving glyphs: clips of characters that move, drawn from the fonts matplotlib ships. Videos without a file or a download.

A clip: 32 frames of 64 x 64 grey pixels, (32, 64, 64, 1) uint8; a 32 x 32 picture of `glyphs`, white on black, moves in it by
one of four motions and is thrown back by the border. **The class is the glyph** (relevance = same class, in another face
or motion); the motion is an attribute, so queries can be sliced by it. Start and speed come from a hash of the URI.

Classes: by `glyphs`' order the first 20 of its training classes and the first 20 of the others. Splits, as those of `glyphs`:

- `train`: training classes, three faces, each motion once: 240 clips. `gallery`: likewise all classes, 480 clips.
- `queries`: the other 20 classes in a face that is nowhere else, each motion once: 80 clips.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.datasets import Item, glyphs
from models.errors import ItemError, UsageError

U8 = npt.NDArray[np.uint8]

FRAMES = 32
EDGE = 64
SPLITS = ("gallery", "queries", "train")
MOTIONS = ("across", "down", "diagonal", "circle")
FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")

_CLASSES = 20
_ROOM = EDGE - glyphs.EDGE  # a glyph's left and top lie in 0.._ROOM
_SPEEDS = (1.0, 3.0)  # pixels a frame; of a circle's rim likewise


def list_items(split: str | None = None) -> list[Item]:
    """The clips of a split ("gallery" unless named), by class, face and motion.

    Raises UsageError for an unknown split.
    """
    split = split or "gallery"
    if split not in SPLITS:
        raise UsageError(f"moving glyphs have no split {split[:50]!r}; there are {', '.join(SPLITS)}.")
    trained, others = _classes()
    wanted = {"gallery": trained + others, "queries": others, "train": trained}[split]
    faces = (glyphs.UNSEEN_FACE,) if split == "queries" else FACES
    drawn = {(item.label, item.key.partition("/")[0]): item for item in glyphs.list_items(split)}
    return [
        Item(
            f"{item.key}/{motion}",
            f"moving-glyph:{item.key}/{motion}",
            label,
            {"motion": motion, "face": face},
        )
        for label in wanted
        for face in faces
        for motion in MOTIONS
        if (item := drawn.get((label, face)))
    ]


def read(uri: str) -> U8:
    """The frames, (32, 64, 64, 1) uint8, of `moving-glyph:<face>/U+<code point>/<motion>`.

    Raises ItemError: malformed (no such motion, no glyph), missing or empty, as `glyphs.read`.
    """
    glyph, _, motion = uri.partition(":")[2].rpartition("/")
    if motion not in MOTIONS:
        raise ItemError(
            "malformed", f"{uri[:80]!r} is no moving glyph: write moving-glyph:DejaVuSans/U+0041/circle"
        )
    picture = np.asarray(glyphs.read(f"glyph:{glyph}"))
    frames = np.zeros((FRAMES, EDGE, EDGE, 1), np.uint8)
    for frame, (left, top) in zip(frames, path(uri), strict=True):
        frame[top : top + glyphs.EDGE, left : left + glyphs.EDGE, 0] = picture
    return frames


def path(uri: str) -> npt.NDArray[np.int64]:
    """(32, 2) int64: left and top of the glyph in each frame, 0 to 32."""
    rng = np.random.default_rng(
        int.from_bytes(hashlib.sha256(f"hotrefresh-moving-1:{uri}".encode()).digest()[:8])
    )
    motion = uri.rpartition("/")[2]
    time = np.arange(FRAMES)
    start, speed = rng.uniform(0, 2 * _ROOM, 2), rng.uniform(*_SPEEDS, 2)
    if motion == "circle":
        radius = _ROOM / 2
        angle = start[0] + rng.choice([-1, 1]) * time * speed[0] / radius
        places = radius + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        moves = np.array([motion in ("across", "diagonal"), motion in ("down", "diagonal")])
        there = (start + time[:, None] * speed * moves) % (2 * _ROOM)
        places = np.minimum(there, 2 * _ROOM - there)  # back from the border
    return np.rint(places).astype(np.int64).clip(0, _ROOM)


@lru_cache(maxsize=1)
def _classes() -> tuple[list[str], list[str]]:
    """The first classes to train on, and the first of the others, in the order of `glyphs`, that every face draws."""
    of_face: dict[str, set[str]] = {face: set() for face in (*FACES, glyphs.UNSEEN_FACE)}
    for item in glyphs.list_items("gallery"):
        of_face.get(item.key.partition("/")[0], set()).add(str(item.label))
    queries = {str(item.label) for item in glyphs.list_items("queries")}
    trained = {str(item.label) for item in glyphs.list_items("train")}
    everywhere = set.intersection(*(of_face[face] for face in FACES))
    order = [glyphs.character_name(label) for label in glyphs.classes_in_order()]
    first = [label for label in order if label in everywhere and label in trained]
    others = [label for label in order if label in everywhere and label in queries]
    return first[:_CLASSES], others[:_CLASSES]
