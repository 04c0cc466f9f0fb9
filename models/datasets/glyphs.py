"""Glyphs: the characters of the TrueType fonts that matplotlib ships, drawn as 32x32 grey pictures.

Classes. Faces with more than 1,000 characters take part, and characters that at least 8 of them hold; control,
private, unassigned, separator and combining characters and glyphs without ink are left out. Two characters are one
class (homoglyphs: Latin A, Greek Alpha, Cyrillic A) when their pictures are equal pixel by pixel in at least half of
the faces that hold both; a class is named after its smallest code point and has one picture a face, that of its
smallest code point there. Relevance = same class, another face.

Splits. Classes are ordered by a hash of their name, so a split does not depend on which other classes exist. The first
half are the training classes; the face STIXGeneral is never trained on nor in the gallery.

- `train`: training classes, all faces but the unseen one.
- `old-train`: of these, the first 30 % of all classes.
- `gallery`: all classes, all faces but the unseen one.
- `queries`: the other half of the classes, drawn in the unseen face: unseen class, unseen face.

A picture: 24 pixels an em, the baseline on row 24, centred by its ink from left to right, white (255) on black; what is
larger than the picture is scaled down.
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.datasets import Item
from models.errors import ItemError, UsageError

EDGE = 32
UNSEEN_FACE = "STIXGeneral"
SPLITS = ("gallery", "queries", "train", "old-train")

_EM_PIXELS = 24
_BASELINE = 24
_CANVAS = 128
_FACE_MIN_CHARACTERS = 1_000
_CLASS_MIN_FACES = 8
_TRAIN_SHARE = 0.5
_OLD_TRAIN_SHARE = 0.3
_SPLIT_SEED = "hotrefresh-glyphs-1"
_LEFT_OUT_CATEGORIES = "CZM"

_drawing = threading.Lock()


@dataclass(frozen=True)
class Catalogue:
    """Every picture: `pixels` (n, 32, 32) uint8; for each its face, code point and class (smallest code point)."""

    pixels: np.ndarray
    faces: tuple[str, ...]
    codes: tuple[int, ...]
    classes: tuple[int, ...]


def list_items(split: str | None = None) -> list[Item]:
    """The items of a split ("gallery" unless named), in the order of the catalogue: face by face, rising code points.

    Raises UsageError for an unknown split.
    """
    return [_item(face, code, label) for _, face, code, label in _rows(split or "gallery")]


def pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, 32, 32) uint8 pictures and (n,) labels as str, in the order of `list_items`: the quick way to train."""
    rows = _rows(split)
    labels = np.array([character_name(label) for *_, label in rows])
    return catalogue().pixels[[place for place, *_ in rows]], labels


def read(uri: str) -> Image.Image:
    """The picture (mode "L", 32x32) of `glyph:<face>/U+<code point>`. Raises ItemError when there is none."""
    try:
        scheme, _, rest = uri.partition(":")
        face, _, character = rest.rpartition("/")
        code = int(character.removeprefix("U+"), 16)
        if scheme != "glyph" or not character.startswith("U+") or not 0 <= code < 0x110000:
            raise ValueError(uri)
    except ValueError:
        raise ItemError(
            "malformed", f"{uri[:80]!r} is no glyph: write glyph:DejaVuSans-Bold/U+0041"
        ) from None
    if code not in _characters().get(face, frozenset()):
        raise ItemError("missing", f"{uri[:80]!r}: no installed face holds this character")
    pixels = _draw(face, code)
    if pixels is None:
        raise ItemError("empty", f"{uri[:80]!r} has no ink")
    return Image.fromarray(pixels)


def character_name(code: int) -> str:
    """U+0041 for 0x41."""
    return f"U+{code:04X}"


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """All pictures, drawn once a process (under a second of CPU, 40 MB)."""
    held = Counter(code for codes in _characters().values() for code in codes)
    wanted = sorted(code for code, faces in held.items() if faces >= _CLASS_MIN_FACES and _is_character(code))
    drawn: dict[str, dict[int, np.ndarray]] = {}
    for face, codes in _characters().items():
        pairs = ((code, _draw(face, code)) for code in wanted if code in codes)
        drawn[face] = {code: pixels for code, pixels in pairs if pixels is not None}
    class_of = _merge_homoglyphs(drawn)
    rows = [
        (face, code, pixels)
        for face, glyphs in drawn.items()
        for code, pixels in _one_a_class(glyphs, class_of).items()
    ]
    return Catalogue(
        np.stack([pixels for *_, pixels in rows]),
        tuple(face for face, *_ in rows),
        tuple(code for _, code, _ in rows),
        tuple(class_of[code] for _, code, _ in rows),
    )


def _one_a_class(glyphs: dict[int, np.ndarray], class_of: dict[int, int]) -> dict[int, np.ndarray]:
    smallest: dict[int, int] = {}
    for code in sorted(glyphs):
        smallest.setdefault(class_of[code], code)
    return {code: glyphs[code] for code in sorted(smallest.values())}


def _merge_homoglyphs(drawn: dict[str, dict[int, np.ndarray]]) -> dict[int, int]:
    """Code point -> smallest code point of its class, by the rule at the top of this file (transitively)."""
    equal: Counter[tuple[int, int]] = Counter()
    for glyphs in drawn.values():
        same: defaultdict[bytes, list[int]] = defaultdict(list)
        for code, pixels in glyphs.items():
            same[pixels.tobytes()].append(code)
        for codes in same.values():
            equal.update(combinations(sorted(codes), 2))
    holders = {
        code: {face for face, glyphs in drawn.items() if code in glyphs} for pair in equal for code in pair
    }
    root = {code: code for glyphs in drawn.values() for code in glyphs}

    def find(code: int) -> int:
        while root[code] != code:
            code = root[code]
        return code

    for (left, right), faces in equal.items():
        if 2 * faces >= len(holders[left] & holders[right]):
            low, high = sorted((find(left), find(right)))
            root[high] = low
    return {code: find(code) for code in root}


def _rows(split: str) -> list[tuple[int, str, int, int]]:
    """(place in the catalogue, face, code point, class) of each picture of a split."""
    if split not in SPLITS:
        raise UsageError(f"glyphs have no split {split!r}: choose one of {', '.join(SPLITS)}")
    everything = catalogue()
    classes = classes_in_order()
    train = set(classes[: round(len(classes) * _TRAIN_SHARE)])
    old_train = set(classes[: round(len(classes) * _OLD_TRAIN_SHARE)])
    rows = enumerate(zip(everything.faces, everything.codes, everything.classes, strict=True))
    wanted = {
        "gallery": lambda face, label: face != UNSEEN_FACE,
        "queries": lambda face, label: face == UNSEEN_FACE and label not in train,
        "train": lambda face, label: face != UNSEEN_FACE and label in train,
        "old-train": lambda face, label: face != UNSEEN_FACE and label in old_train,
    }[split]
    return [(place, face, code, label) for place, (face, code, label) in rows if wanted(face, label)]  # type: ignore[no-untyped-call]


def order_key(label: int) -> str:
    """What classes are ordered by: a hash of a class's name."""
    return hashlib.sha256(f"{_SPLIT_SEED}:{character_name(label)}".encode()).hexdigest()


def classes_in_order() -> list[int]:
    """Every class, by the hash that splits go by: training classes first."""
    return sorted(set(catalogue().classes), key=order_key)


def _item(face: str, code: int, label: int) -> Item:
    name = f"{face}/{character_name(code)}"
    return Item(key=name, uri=f"glyph:{name}", label=character_name(label))


def _is_character(code: int) -> bool:
    return unicodedata.category(chr(code))[0] not in _LEFT_OUT_CATEGORIES


@lru_cache(maxsize=1)
def _paths() -> dict[str, Path]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return {path.stem: path for path in sorted(folder.glob("*.ttf"))}


@lru_cache(maxsize=1)
def _characters() -> dict[str, frozenset[int]]:
    """Code points of each face that takes part."""
    from matplotlib.ft2font import FT2Font

    fonts = {face: FT2Font(str(path)) for face, path in _paths().items()}
    # A last-resort font maps a million code points to a few hundred boxes: count glyphs first.
    rich = {face: font for face, font in fonts.items() if font.num_glyphs > _FACE_MIN_CHARACTERS}
    held = {face: frozenset(font.get_charmap()) for face, font in rich.items()}
    return {face: codes for face, codes in held.items() if len(codes) > _FACE_MIN_CHARACTERS}


@lru_cache(maxsize=64)
def _font(face: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_paths()[face]), _EM_PIXELS, layout_engine=ImageFont.Layout.BASIC)


def _draw(face: str, code: int) -> np.ndarray | None:
    """(32, 32) uint8, or None when the glyph has no ink."""
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    with _drawing:  # FreeType faces are not thread-safe
        ImageDraw.Draw(canvas).text((_CANVAS // 2, _CANVAS // 2), chr(code), 255, _font(face), anchor="ls")
    box = canvas.getbbox()
    if box is None:
        return None
    ink = canvas.crop(box)
    if max(ink.size) > EDGE:
        scale = EDGE / max(ink.size)
        ink = ink.resize([max(1, int(edge * scale)) for edge in ink.size], Image.Resampling.BOX)
    width, height = ink.size
    top = _BASELINE + box[1] - _CANVAS // 2
    picture = Image.new("L", (EDGE, EDGE))
    picture.paste(ink, ((EDGE - width) // 2, min(max(top, 0), EDGE - height)))
    return np.array(picture)
