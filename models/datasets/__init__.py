"""Datasets: where items come from. One file a source, one a URI scheme; both registered here, loaded lazily.

An item is named by a URI, and the URI alone is enough to read it anywhere: `glyph:`, `emoji:`, `copy:`, `verse:`, `file:`,
`text:`, `moving-glyph:`, `atari:`, `clip:`, `ptvd:`.
Nothing here ever goes to a network.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ItemError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One thing to embed.

    Attributes:
        label: items of equal label answer each other's queries; None: unknown.
        attributes: what else is known of it, such as a tenant; queries are sliced by it.
        other_uris: modality → URI of the same thing in other modalities than `uri`'s: the plot of an episode, say.
    """

    key: str
    uri: str
    label: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    other_uris: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Rejected:
    """Something in a source that cannot become an item, with the reason in one line."""

    key: str
    uri: str
    reason: str


@dataclass(frozen=True)
class ItemListing:
    """What a source holds: usable items, keys unique; what was refused; how many files were no pictures at all."""

    items: list[Item]
    rejected: list[Rejected]
    ignored: int = 0


@dataclass(frozen=True)
class BuiltIn:
    """A built-in source: its module has `list_items([variant], split)`; `variants` are written after a colon."""

    module: str
    modality: str
    variants: tuple[str, ...] = ()


SOURCES = {
    "glyphs": BuiltIn("models.datasets.glyphs", "image"),
    "verses": BuiltIn("models.datasets.verses", "text", ("web", "kjv")),
    "emoji": BuiltIn("models.datasets.emoji", "image"),
    "copies": BuiltIn("models.datasets.copies", "image", ("references", "queries", "background")),
    "moving-glyphs": BuiltIn("models.datasets.moving_glyphs", "video"),
    "atari": BuiltIn("models.datasets.atari", "video"),
}
CLIPS = "clips:"
"""What a folder of clips is written after."""
# URI scheme -> module with read(uri).
SCHEMES = {
    "glyph": "models.datasets.glyphs",
    "verse": "models.datasets.verses",
    "emoji": "models.datasets.emoji",
    "copy": "models.datasets.copies",
    "file": "models.datasets.folder",
    "text": "models.datasets.inline",
    "clip": "models.datasets.clip_files",
    "moving-glyph": "models.datasets.moving_glyphs",
    "atari": "models.datasets.atari",
    "ptvd": "models.datasets.ptvd_source",
}
SHOWN_BY_WORDS = frozenset({"text", "verse", "ptvd"})
"""Schemes whose items are shown by their words: texts, and plot segments, of which there is no picture."""
FOLDER_SOURCES = dict.fromkeys(("ptvd", "ptvd-texts", "ptvd-comments"), "models.datasets.ptvd_source")
"""Sources written NAME:FOLDER -> module with list_items(source, split) and modalities_of(source)."""
MANIFEST_SUFFIXES = (".csv", ".parquet")
MAX_NAME_BYTES = 1024  # of a key or label: the database's indexes take no much longer one


def list_items(source: str, split: str | None = None, modality: str | None = None) -> ItemListing:
    """The items of a built-in dataset, an image folder, a folder of clips (`clips:FOLDER`), or a CSV or Parquet manifest.

    A built-in dataset's name goes before a folder of that name, which is written `./glyphs`.
    Keys are unique: of a key that comes twice the first stays, the others are refused.

    Args:
        modality: which of the source's `uri` is of, the others are `other_uris`; an item without it is refused. None: the first.

    Raises:
        UsageError: no such source or split, one that cannot be read at all, one without any item, or without the modality.
    """
    if modality is None:
        return _listed(source, split, None)
    first, *others = modalities_of(source)
    if modality not in (first, *others):
        also = "".join(f" and {each}s" for each in others)
        raise UsageError(f"{source[:200]!r} holds {first}s{also}, no {modality[:80]}s.")
    listing = _listed(source, split, modality)
    return listing if modality == first or _is_manifest(source) else _turned(listing, first, modality)


def _turned(listing: ItemListing, first: str, wanted: str) -> ItemListing:
    """With `wanted` as the modality of each `uri`, and `first` among the others."""
    items, rejected = [], list(listing.rejected)
    for item in listing.items:
        others = {first: item.uri, **item.other_uris}
        uri = others.pop(wanted, None)
        if uri is None:
            rejected.append(Rejected(item.key, storable(item.uri), f"no {wanted}"))
        else:
            items.append(replace(item, uri=uri, other_uris=others))
    return ItemListing(items, rejected, listing.ignored)


def _listed(source: str, split: str | None, modality: str | None) -> ItemListing:
    name, _, variant = source.partition(":")
    if name in SOURCES:
        built_in = SOURCES[name]
        if variant and variant not in built_in.variants:
            known = [f"{name}:{each}" for each in built_in.variants] or [name]
            raise UsageError(
                f"there is no {source[:200]!r}; write {' or '.join(known)}, and name a split by --split."
            )
        listed = import_module(built_in.module).list_items(*([variant] if variant else []), split)
    elif name in FOLDER_SOURCES and variant:
        listed = import_module(FOLDER_SOURCES[name]).list_items(source, split)
    else:
        if split is not None:
            raise UsageError(f"{source[:200]!r} has no splits; leave --split {split} out.")
        place = Path(source.removeprefix(CLIPS))
        # A row of a manifest may lack any of its columns but the one that is asked for.
        chosen = [modality] if _is_manifest(source) else []
        listed = import_module(_reader(source)).list_items(place, *chosen)
    return _checked(ItemListing(listed, []) if isinstance(listed, list) else listed)


def _is_manifest(source: str) -> bool:
    """Whether a source is a file that lists items."""
    named = source.partition(":")[0] in FOLDER_SOURCES or source.startswith(CLIPS)
    return not named and Path(source).suffix.lower() in MANIFEST_SUFFIXES and not os.path.isdir(source)


def _reader(source: str) -> str:
    """The module that reads a source which lies on disk."""
    if source.startswith(CLIPS):
        return "models.datasets.clip_files"
    if os.path.isdir(source):
        return "models.datasets.folder"
    if _is_manifest(source):
        return "models.datasets.manifest_file"
    raise UsageError(
        f"{source[:200]!r} is no folder (one of clips is written {CLIPS}FOLDER), no .csv or .parquet file, "
        f"and no built-in dataset ({', '.join(SOURCES)})."
    )


def _checked(listing: ItemListing) -> ItemListing:
    seen: set[str] = set()
    items, rejected = [], list(listing.rejected)
    for item in listing.items:
        fault = "duplicate key" if item.key in seen else _fault(item)
        if fault:
            rejected.append(Rejected(item.key, item.uri, fault))
        else:
            seen.add(item.key)
            items.append(item)
    return ItemListing(
        items, [Rejected(storable(r.key), storable(r.uri), r.reason) for r in rejected], listing.ignored
    )


def _fault(item: Item) -> str | None:
    """What keeps a key, label or attribute out: no UTF-8, characters that command a terminal or turn a line round, its length."""
    named = [(f"attribute {name[:50]}", f"{name}={value}") for name, value in item.attributes.items()]
    for what, name in (("key", item.key), ("label", item.label or ""), *named):
        if not is_plain_text(name):
            return f"{what} is no plain text"
        if len(name.encode()) > MAX_NAME_BYTES:
            return f"{what} too long"
    return None


def is_plain_text(name: str) -> bool:
    """Whether a name can be stored and shown: no control character, no line break, no change of direction, no surrogate.

    File names that are not UTF-8 come from the system with their odd bytes as lone surrogates.
    """
    if name.isascii() and name.isprintable():
        return True
    return not any(c in _TURNING or unicodedata.category(c) in _UNPRINTABLE for c in name)


_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def storable(name: str, limit: int = MAX_NAME_BYTES) -> str:
    """A name of any kind as something that can be stored and shown: odd characters are spelled out, the rest cut off."""
    return "".join(c if is_plain_text(c) else repr(c)[1:-1] for c in name[:limit])


def modality_of(source: str) -> str:
    """ "image", "text" or "video": what a source holds first of all. Raises as `modalities_of`."""
    return modalities_of(source)[0]


def modalities_of(source: str) -> tuple[str, ...]:
    """What a source's items are, the first the one that each has. Raises UsageError for no such source, or one that cannot be
    read.
    """
    name = source.partition(":")[0]
    if name in SOURCES:
        return (SOURCES[name].modality,)
    if name in FOLDER_SOURCES and ":" in source:
        return tuple(import_module(FOLDER_SOURCES[name]).modalities_of(source))
    return tuple(import_module(_reader(source)).modalities_of(Path(source.removeprefix(CLIPS))))


def read_item(uri: str) -> Image.Image | str | U8:
    """An item's content: a decoded picture, mode "L" or "RGB"; a text; a clip's frames, (T, H, W, 1 or 3) uint8; or a
    `PlotSegment` of PTVD.

    Raises:
        ItemError: missing, corrupt, too large, of an unknown kind: quarantined by the caller, never fatal.
        UsageError: a dataset's package is not installed here: the environment's fault, not the item's.
    """
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ItemError("unknown_kind", f"{uri[:80]!r} is of no known kind; known are {', '.join(SCHEMES)}.")
    content: Any = import_module(SCHEMES[scheme]).read(uri)
    return content  # type: ignore[no-any-return]


def content_digest(uri: str) -> str:
    """sha256, hex, of a file's bytes, a text's UTF-8, or a drawn picture's or clip's pixels. Raises as `read_item`."""
    scheme = uri.partition(":")[0]
    if scheme in ("file", "clip"):
        digest: str = import_module(SCHEMES[scheme]).digest(uri)
        return digest
    content = read_item(uri)
    return hashlib.sha256(content.encode() if isinstance(content, str) else content.tobytes()).hexdigest()
