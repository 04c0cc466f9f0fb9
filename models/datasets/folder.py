"""Image folders and image files: listing, and decoding with limits that are errors, not warnings."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.datasets import Item, ItemListing, Rejected
from models.errors import ItemError, UsageError
from models.plain_file import NotPlainError, TooLargeError, open_plain, size_of

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
# By content, whatever the suffix says. Pillow knows more: EPS, for one, would be handed to another program.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
MAX_BYTES = 50 * 2**20
MAX_PIXELS = 64_000_000

# Our own limit is below Pillow's, so its warning has nothing to add. Set once for the process: `catch_warnings` round
# each picture would switch the filters of all decoding threads.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def uri_of(path: Path, scheme: str = "file") -> str:
    """URI of an absolute path; bytes, because file names need not be UTF-8."""
    name = str(path.absolute())
    try:
        return f"{scheme}:" + quote(os.fsencode(name))
    except UnicodeEncodeError:  # no file has such a name: it will be found missing
        return f"{scheme}:" + quote(name.encode("utf-8", "surrogatepass"))


def list_items(folder: Path) -> ItemListing:
    """Every picture below a folder, in order of name. The label is the name of its sub-folder, if it lies in one.

    Raises:
        UsageError: no picture in it.
    """
    closed: list[OSError] = []
    found = ((path, path.suffix.lower() in SUFFIXES) for path in _files(folder, closed))
    listing = listed(folder, found, closed, "file")
    if not listing.items and not listing.rejected:
        raise UsageError(
            f"there is no picture in {folder} ({', '.join(sorted(SUFFIXES))}; {listing.ignored} other files); "
            "name another folder."
        )
    return listing


def listed(
    place: Path, found: Iterable[tuple[Path, bool]], closed: Sequence[OSError], scheme: str
) -> ItemListing:
    """What was found below a folder, each as an item if it is of the right kind.

    Args:
        found: paths, and whether each is what is looked for.
        closed: filled while `found` is read: folders that could not be opened.
        scheme: of the items' URIs.
    """
    items: list[Item] = []
    rejected: list[Rejected] = []
    ignored = 0
    for path, wanted in found:
        key = path.relative_to(place).as_posix()
        if not wanted:
            ignored += 1
        elif not os.path.exists(path):
            rejected.append(Rejected(key, uri_of(path, scheme), "missing"))
        else:
            label = path.parent.name if path.parent != place else None
            items.append(Item(key, uri_of(path, scheme), label))
    for error in closed:
        shut = Path(error.filename)
        name = os.path.relpath(shut, place)
        rejected.append(Rejected(name, uri_of(shut, scheme), "folder cannot be opened"))
    return ItemListing(items, rejected, ignored)


def _files(folder: Path, closed: list[OSError]) -> Iterator[Path]:
    # os.walk does not follow links to folders: a loop of links cannot trap it.
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


def modalities_of(folder: Path) -> tuple[str]:
    """Always image alone."""
    return ("image",)


def read(uri: str) -> Image.Image:
    """Decode a file's picture: mode "L" or "RGB", turned as its camera says, transparency over white.

    Of an animation the first picture; 16 bits a channel become 8 by their full range.

    Raises:
        ItemError: missing, empty, too_large, unsupported or corrupt.
    """
    path = path_of(uri)
    try:
        with sound_file(path) as file, Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ItemError(
                    "too_large", f"{shown(path)} is {width} × {height}; the limit is {MAX_PIXELS} pixels."
                )
            return _plain(picture)
    except UnidentifiedImageError as error:
        raise ItemError("unsupported", f"{shown(path)} is no picture that can be read.") from error
    except Image.DecompressionBombError as error:
        raise ItemError("too_large", f"{shown(path)}: {error}.") from error
    except (ItemError, MemoryError):  # a full memory is no fault of the picture
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:500]
        raise ItemError("corrupt", f"{shown(path)} cannot be decoded: {said}.") from error


def digest(uri: str) -> str:
    """sha256, hex, of a file's bytes. Raises ItemError: missing, empty, too_large or unsupported."""
    path = path_of(uri)
    try:
        with sound_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ItemError("missing", f"{shown(path)} cannot be read: {error.strerror}.") from error


def path_of(uri: str) -> Path:
    """The path that `uri_of` was asked of. Raises ItemError "missing" for what is no name of a file."""
    # Surrogates may stand for odd bytes of a file name; any other half character is no name at all.
    try:
        return Path(os.fsdecode(unquote_to_bytes(uri.partition(":")[2])))
    except UnicodeError as error:
        raise ItemError("missing", f"{uri[:80]!r} is no name of a file.") from error


def shown(path: Path) -> str:
    """A path as it may be told: odd characters spelled out, the rest cut off."""
    return repr(str(path)[:500])[1:-1]


@contextmanager
def sound_file(path: Path, most_bytes: int | None = None) -> Iterator[BufferedReader]:
    """A plain file of 1 to `most_bytes` (None: MAX_BYTES), open. Raises ItemError: missing, unsupported, empty, too_large."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context(open_plain(path, most_bytes or MAX_BYTES))
        except NotPlainError as error:
            raise ItemError("unsupported", f"{shown(path)} is no file.") from error
        except TooLargeError as error:
            raise ItemError("too_large", f"{shown(path)} has {error.strerror}.") from error
        except OSError as error:
            raise ItemError("missing", f"{shown(path)} cannot be read: {error.strerror}.") from error
        if size_of(file) == 0:
            raise ItemError("empty", f"{shown(path)} has no bytes.")
        yield file


def _plain(picture: Image.Image) -> Image.Image:
    picture.load()
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I") or turned.mode == "F":
        return _to_8_bits(turned, full_range=turned.mode.startswith("I;16") or picture.format == "PNG")
    if turned.mode in ("P", "PA", "LA", "RGBA") or "transparency" in turned.info:
        over = turned.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return turned.convert("L" if turned.mode in ("1", "L") else "RGB")


def _to_8_bits(picture: Image.Image, full_range: bool) -> Image.Image:
    """16 bits by their full range, so the 8-bit version of a picture looks the same; 32 bits, which have none, by their own."""
    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise ItemError("corrupt", "the picture has values that are no numbers.")
    low, high = (0.0, 65535.0) if full_range else (float(values.min()), float(values.max()))
    scaled = (values - low) * (255.0 / ((high - low) or 1.0))
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
