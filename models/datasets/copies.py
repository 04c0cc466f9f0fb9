"""Copies: regions of real photographs that scikit-image ships, and edited copies of some of them. For copy detection.

Install it where you run: `pip install 'hotrefresh[copies]'`. Nothing is downloaded: only the pictures inside the wheel are
read, and scikit-image itself is not imported. There are 16 that show something: photographs, textures, two written pages,
a section of tissue, a retina, the moon and deep space. Each is cut into up to 3 x 3 disjoint regions of at least 150 pixels a
side, 72 in all. Regions of one photograph look alike and share no pixel: they are the hard cases, beside the easy ones.

Splits "0", "1", "2" are three seeds. A seed shuffles the regions into roles and draws every edit:

- 64 references: what may have been copied. 40 of them nobody copies.
- 24 strangers: what the other queries are made of. No answer is right for them.
- 12 hosts: pictures that others are pasted into.
- 16 of the background: in none of these, to say what a query scores by chance.

Variants: `references`, `background`, and `queries`, one for each edit of each copied reference and stranger: 168 with an
answer, 168 without. Relevance = same region. The attributes `edit` and `photograph` say what was done and where it is from.

Edits: `crop` (35 to 60 % of the area), `flip` (left and right), `blur`, `text` (three lines), `jpeg` (quality 8 to 20), `rotate`
(5 to 20 degrees), `overlay` (pasted into a host enlarged to a width of 600 pixels, over 35 to 60 % of it).
"""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from models.datasets import Item, folder
from models.errors import ItemError, UsageError

VARIANTS = ("references", "queries", "background")
SPLITS = ("0", "1", "2")
EDITS = ("crop", "flip", "blur", "text", "jpeg", "rotate", "overlay")
ORIGINAL = "original"

_PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
_LEAST_SIDE = 150
_MOST_CUTS = 3
_REFERENCES, _COPIED, _STRANGERS, _HOSTS = 64, 24, 24, 12
_HOST_WIDTH = 600
_SEED = "hotrefresh-copies-1"
_WORDS = (
    "never",
    "gonna",
    "tell",
    "who",
    "took",
    "this",
    "picture",
    "first",
    "just",
    "share",
    "it",
    "all",
    "today",
)


def list_items(variant: str = "references", split: str | None = None) -> list[Item]:
    """The items of a variant with the seed `split` ("0" unless named), regions in the order the seed gave them.

    Raises UsageError for an unknown variant or split, and where scikit-image is not installed.
    """
    split = split or "0"
    if variant not in VARIANTS:
        raise UsageError(
            f"there are no copies {variant[:50]!r}: write copies:{' or copies:'.join(VARIANTS)}."
        )
    if split not in SPLITS:
        raise UsageError(f"copies have no split {split[:50]!r}; there are {', '.join(SPLITS)}.")
    references, strangers, _, background = _roles(split)
    if variant == "queries":
        return [_item(split, name, edit) for name in references[:_COPIED] + strangers for edit in EDITS]
    return [_item(split, name, ORIGINAL) for name in (references if variant == "references" else background)]


def read(uri: str) -> Image.Image:
    """The picture (mode "RGB") of `copy:<seed>/<region>/<edit>`; the URI alone draws every number of the edit.

    Raises:
        ItemError: there is no such picture.
        UsageError: scikit-image is not installed.
    """
    split, _, rest = uri.partition(":")[2].partition("/")
    name, _, edit = rest.partition("/")
    if split not in SPLITS or edit not in (ORIGINAL, *EDITS) or name not in _regions():
        raise ItemError("missing", f"there is no copy {uri[:80]!r}: write copy:0/astronaut-1/crop")
    picture = _region(name)
    if edit == ORIGINAL:
        return picture
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{_SEED}:{uri}".encode()).digest()[:8]))
    if edit == "overlay":
        hosts = _roles(split)[2]
        return _pasted(picture, _region(hosts[rng.integers(len(hosts))]), rng)
    return _EDITS[edit](picture, rng)


def _item(split: str, name: str, edit: str) -> Item:
    return Item(
        f"{name}/{edit}",
        f"copy:{split}/{name}/{edit}",
        name,
        {"edit": edit, "photograph": name.rpartition("-")[0]},
    )


@lru_cache(maxsize=len(SPLITS))
def _roles(split: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """References, strangers, hosts and the background of a seed."""
    names = sorted(_regions(), key=lambda n: hashlib.sha256(f"{_SEED}:{split}:{n}".encode()).hexdigest())
    parts = np.split(np.array(names), np.cumsum([_REFERENCES, _STRANGERS, _HOSTS]))
    references, strangers, hosts, background = (part.tolist() for part in parts)
    return references, strangers, hosts, background


@lru_cache(maxsize=1)
def _regions() -> dict[str, tuple[str, tuple[int, int, int, int]]]:
    """Name of a region → the photograph's file, and the box in it."""
    found = {}
    for file in _PHOTOGRAPHS:
        with Image.open(_folder() / file) as picture:
            width, height = picture.size
        across, down = (min(_MOST_CUTS, max(1, side // _LEAST_SIDE)) for side in (width, height))
        for place in range(across * down):
            x, y = place % across, place // across
            box = (
                x * width // across,
                y * height // down,
                (x + 1) * width // across,
                (y + 1) * height // down,
            )
            found[f"{Path(file).stem}-{place + 1}"] = (file, box)
    return found


def _region(name: str) -> Image.Image:
    file, box = _regions()[name]
    return _photograph(file).crop(box)


@lru_cache(maxsize=len(_PHOTOGRAPHS))
def _photograph(file: str) -> Image.Image:
    """A photograph, kept: 20 MB for all of them, while items are read region by region."""
    return folder.read(folder.uri_of(_folder() / file)).convert("RGB")


@lru_cache(maxsize=1)
def _folder() -> Path:
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise UsageError(
            "the photographs are those of scikit-image, which is not installed: pip install 'hotrefresh[copies]'."
        )
    return Path(found.origin).parent / "data"


def _crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = picture.size
    area, stretch = rng.uniform(0.35, 0.6), rng.uniform(0.8, 1.25)
    w, h = (min(1.0, float(np.sqrt(area) * each)) for each in (stretch, 1 / stretch))
    w, h = round(w * width), round(h * height)
    left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
    return picture.crop((int(left), int(top), int(left) + w, int(top) + h))


def _flip(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    del rng
    return ImageOps.mirror(picture)


def _blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.0, 2.5))))


def _text(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    written = picture.copy()
    draw = ImageDraw.Draw(written)
    for _ in range(3):
        words = " ".join(_WORDS[i] for i in rng.integers(len(_WORDS), size=3))
        font = ImageFont.load_default(size=float(picture.height * rng.uniform(0.09, 0.14)))
        x, y = picture.width * rng.uniform(0, 0.3), picture.height * rng.uniform(0, 0.85)
        draw.text((x, y), words, fill=tuple(int(c) for c in rng.integers(256, size=3)), font=font)
    return written


def _jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(8, 21)))
    with Image.open(file) as read_again:
        return read_again.convert("RGB")


def _rotate(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    angle = float(rng.uniform(5, 20) * rng.choice([-1, 1]))
    return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(0, 0, 0))


def _pasted(picture: Image.Image, host: Image.Image, rng: np.random.Generator) -> Image.Image:
    ground = host.resize(
        (_HOST_WIDTH, round(_HOST_WIDTH * host.height / host.width)), Image.Resampling.BICUBIC
    )
    width = round(_HOST_WIDTH * rng.uniform(0.35, 0.6))
    height = round(width * picture.height / picture.width)
    if height > 0.8 * ground.height:
        height = round(0.8 * ground.height)
        width = round(height * picture.width / picture.height)
    inset = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (int(rng.integers(8, free - 8)) for free in (ground.width - width, ground.height - height))
    ground.paste(inset, (left, top))
    return ground


_EDITS = {"crop": _crop, "flip": _flip, "blur": _blur, "text": _text, "jpeg": _jpeg, "rotate": _rotate}
