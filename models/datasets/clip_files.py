"""Folders of clips, written `clips:FOLDER`: each .gif, .mp4, .m4v or .mov below, and each folder that holds frames.

It is written so because no look at a folder tells clips from pictures: a GIF is both, and so are the frames of a clip. A folder
that directly holds pictures other than GIFs is one clip, and nothing else below it is looked at.

A clip is held thinned while it is decoded, so that a worker's decoding threads need little memory whatever a clip's length: of at
most KEPT_FRAMES frames every first, every second, every fourth…, and at most KEPT_EDGE pixels of their longer edge.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.datasets import ItemListing, folder, storable
from models.datasets.clips import GIF, LIMITS, MP4, read_clip
from models.errors import ItemError, UsageError

U8 = npt.NDArray[np.uint8]
KEPT_FRAMES, KEPT_EDGE = 128, 512
HELD = replace(LIMITS, kept_frames=KEPT_FRAMES, kept_edge=KEPT_EDGE)
_FRAMES = folder.SUFFIXES - GIF


def uri_of(path: Path) -> str:
    """clip: URI of an absolute path."""
    return folder.uri_of(path, "clip")


def list_items(place: Path) -> ItemListing:
    """Every clip below a folder, in order of name. The label is the name of the sub-folder that it lies in, if it does.

    Raises:
        UsageError: no folder, or no clip in it.
    """
    if not place.is_dir():
        raise UsageError(f"{place} is no folder; write clips:FOLDER.")
    closed: list[OSError] = []
    listing = folder.listed(place, _found(place, closed), closed, "clip")
    if not listing.items and not listing.rejected:
        raise UsageError(
            f"there is no clip in {place} ({', '.join(sorted(GIF | MP4))}, or a sub-folder of frames; "
            f"{listing.ignored} other files); name another folder."
        )
    return listing


def _found(place: Path, closed: list[OSError]) -> Iterator[tuple[Path, bool]]:
    """Files, and folders of frames, and whether each is a clip."""
    for parent, folders, names in os.walk(place, onerror=closed.append):
        here = Path(parent)
        if here != place and any(Path(name).suffix.lower() in _FRAMES for name in names):
            folders.clear()
            yield here, True
            continue
        folders.sort()
        yield from ((here / name, Path(name).suffix.lower() in GIF | MP4) for name in sorted(names))


def modalities_of(place: Path) -> tuple[str]:
    """Always video alone."""
    return ("video",)


def read(uri: str) -> U8:
    """(T, H, W, 3) uint8, T at most KEPT_FRAMES, H and W at most KEPT_EDGE.

    Raises:
        ItemError: as `read_clip`.
        UsageError: PyAV is not installed, for an MP4.
    """
    path = _path_of(uri)
    try:
        return read_clip(path, HELD).frames
    except ItemError as error:
        raise ItemError(error.reason, storable(str(error))) from error
    except OSError as error:  # of a folder that nobody may look into
        raise ItemError("missing", f"{folder.shown(path)} cannot be read: {error.strerror}.") from error


def digest(uri: str) -> str:
    """sha256, hex, of a file's bytes, or of the names and digests of a folder's frames. Raises ItemError as `read`."""
    path = _path_of(uri)
    try:
        if path.is_dir():
            names = sorted(each for each in os.listdir(path) if Path(each).suffix.lower() in folder.SUFFIXES)
            parts = [os.fsencode(n) + b"\0" + folder.digest(folder.uri_of(path / n)).encode() for n in names]
            return hashlib.sha256(b"\0".join(parts)).hexdigest()
        with folder.sound_file(path, LIMITS.file_bytes) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ItemError("missing", f"{folder.shown(path)} cannot be read: {error.strerror}.") from error


def _path_of(uri: str) -> Path:
    path = folder.path_of(uri)
    try:
        path.exists()  # a name that no system takes raises here
    except (UnicodeError, ValueError) as error:
        raise ItemError("missing", f"{uri[:80]!r} is no name of a file.") from error
    return path
