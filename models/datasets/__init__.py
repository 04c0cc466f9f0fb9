"""Datasets: where items come from. One file a source, one a URI scheme; both registered here, loaded lazily.

An item is named by a URI, and the URI alone is enough to read it anywhere: `glyph:`, `verse:`, `file:`, `text:`.
Nothing here ever goes to a network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ItemError, UsageError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Item:
    """One thing to embed. `label`: items of equal label answer each other's queries; None: unknown."""

    key: str
    uri: str
    label: str | None = None


@dataclass(frozen=True)
class Rejected:
    """Something in a source that cannot become an item, with the reason in one line."""

    key: str
    uri: str
    reason: str


@dataclass(frozen=True)
class ItemListing:
    """What a source holds: usable items, keys unique, and what was refused."""

    items: list[Item]
    rejected: list[Rejected]


# Built-in sources: name -> (module with list_items(split), modality, what it is).
SOURCES = {
    "glyphs": ("models.datasets.glyphs", "image", "characters drawn in the fonts that matplotlib ships"),
    "verses": (
        "models.datasets.verses",
        "text",
        "the same verses in English translations (verses:web, verses:kjv)",
    ),
}
# URI scheme -> module with read(uri).
SCHEMES = {
    "glyph": "models.datasets.glyphs",
    "verse": "models.datasets.verses",
    "file": "models.datasets.folder",
    "text": "models.datasets.manifest_file",
}
MANIFEST_SUFFIXES = (".csv", ".parquet")


def list_items(source: str, split: str | None = None) -> ItemListing:
    """The items of a built-in dataset, an image folder, or a CSV or Parquet manifest.

    Keys are unique: of a key that comes twice the first stays, the others are refused.

    Raises:
        UsageError: no such source or split, or one that cannot be read at all.
    """
    name, _, variant = source.partition(":")
    if name in SOURCES and not Path(source).exists():
        listed = import_module(SOURCES[name][0]).list_items(*([variant] if variant else []), split)
    else:
        if split is not None:
            raise UsageError(f"{source!r} has no splits; leave --split {split} out.")
        path = Path(source)
        if path.is_dir():
            module = "models.datasets.folder"
        elif path.suffix.lower() in MANIFEST_SUFFIXES:
            module = "models.datasets.manifest_file"
        else:
            raise UsageError(
                f"{source!r} is no folder, no .csv or .parquet file, and no built-in dataset ({', '.join(SOURCES)})."
            )
        listed = import_module(module).list_items(path)
    if isinstance(listed, list):
        listed = ItemListing(listed, [])
    return _unique(listed)


def _unique(listing: ItemListing) -> ItemListing:
    seen: set[str] = set()
    items, rejected = [], list(listing.rejected)
    for item in listing.items:
        if item.key in seen:
            rejected.append(Rejected(item.key, item.uri, "duplicate key"))
        else:
            seen.add(item.key)
            items.append(item)
    return ItemListing(items, rejected)


def modality_of(source: str) -> str:
    """ "image" or "text": what a source holds. Raises UsageError as `list_items`."""
    name = source.partition(":")[0]
    if name in SOURCES and not Path(source).exists():
        return SOURCES[name][1]
    if Path(source).suffix.lower() in MANIFEST_SUFFIXES:
        modality: str = import_module("models.datasets.manifest_file").modality_of(Path(source))
        return modality
    return "image"


def read_item(uri: str) -> Image.Image | str:
    """An item's content: a decoded picture, mode "L" or "RGB", or a text.

    Raises:
        ItemError: missing, corrupt, too large, of an unknown kind: quarantined by the caller, never fatal.
    """
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ItemError("unknown_kind", f"{uri[:80]!r} is of no known kind; known are {', '.join(SCHEMES)}.")
    content: Any = import_module(SCHEMES[scheme]).read(uri)
    return content  # type: ignore[no-any-return]


def content_digest(uri: str) -> str:
    """sha256, hex, of an item's decoded content. Raises ItemError as `read_item`."""
    content = read_item(uri)
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()
    header = f"{content.mode} {content.size}".encode()
    return hashlib.sha256(header + content.tobytes()).hexdigest()
