"""Image folders and image files: listing, and decoding with limits that are errors, not warnings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from PIL import Image, ImageOps, UnidentifiedImageError

from models.datasets import Item, ItemListing, Rejected
from models.errors import ItemError, UsageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
MAX_BYTES = 50 * 2**20
MAX_PIXELS = 64_000_000


def uri_of(path: Path) -> str:
    """file: URI of an absolute path."""
    return "file:" + quote(str(path.absolute()))


def list_items(folder: Path) -> ItemListing:
    """Every picture below a folder, in order of name. The label is the name of its sub-folder, if it lies in one.

    Raises:
        UsageError: no picture in it.
    """
    items: list[Item] = []
    rejected: list[Rejected] = []
    for path in _files(folder):
        key = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in SUFFIXES:
            continue
        if not path.exists():
            rejected.append(Rejected(key, uri_of(path), "missing"))
            continue
        label = path.parent.name if path.parent != folder else None
        items.append(Item(key, uri_of(path), label))
    if not items and not rejected:
        raise UsageError(
            f"there is no picture in {folder} ({', '.join(sorted(SUFFIXES))}); name another folder."
        )
    return ItemListing(items, rejected)


def _files(folder: Path) -> Iterator[Path]:
    # os.walk does not follow links to folders: a loop of links cannot trap it.
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def read(uri: str) -> Image.Image:
    """Decode a file's picture: mode "L" or "RGB", turned as its camera says, transparency over white.

    Raises:
        ItemError: missing, empty, too_large, unsupported or corrupt.
    """
    path = Path(unquote(uri.partition(":")[2]))
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise ItemError("missing", f"{path} cannot be read: {error.strerror}.") from error
    if size_bytes == 0:
        raise ItemError("empty", f"{path} has no bytes.")
    if size_bytes > MAX_BYTES:
        raise ItemError("too_large", f"{path} has {size_bytes} bytes; the limit is {MAX_BYTES}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ItemError(
                        "too_large", f"{path} is {width} × {height}; the limit is {MAX_PIXELS} pixels."
                    )
                return _plain(picture)
    except UnidentifiedImageError as error:
        raise ItemError("unsupported", f"{path} is no picture that can be read.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ItemError("too_large", f"{path}: {error}.") from error
    except ItemError:
        raise
    except Exception as error:
        raise ItemError("corrupt", f"{path} cannot be decoded: {type(error).__name__}: {error}.") from error


def _plain(picture: Image.Image) -> Image.Image:
    picture.load()
    turned = ImageOps.exif_transpose(picture) or picture
    if turned.mode.startswith("I") or turned.mode == "F":  # 16 and 32 bits a pixel
        low, high = turned.getextrema()
        span = max(float(high) - float(low), 1.0)  # type: ignore[arg-type]
        return turned.convert("F").point(lambda v: (v - float(low)) * (255.0 / span)).convert("L")  # type: ignore[arg-type]
    if turned.mode in ("1", "L"):
        return turned.convert("L")
    if turned.mode in ("P", "PA", "LA", "RGBA") or "transparency" in turned.info:
        over = turned.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return turned.convert("RGB")
