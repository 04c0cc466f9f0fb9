"""Extents and the few files beside them, on a local folder or on object storage; one file a kind of store.

A URL names the place: a path or `file://…` is a local folder, any other scheme is fsspec's (s3://bucket/prefix,
gs://…, memory://). `base` holds the protocols; `tests/contract/test_store.py` is what every kind must do.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import numpy.typing as npt

from models.codecs.codes import CodeShape
from orchestrator.errors import UsageError
from orchestrator.store.base import CorruptExtentError, Extents, Folder, Root, Table
from orchestrator.store.row_format import RowFormat

ROWS, ADAPTED, SCORES = "rows.u32", "adapted.f32", "scores.f32"

KINDS = {
    "file": "orchestrator.store.local",
}
"""URL scheme → module with `open_folder(url)` and `open_root(url)`, loaded only when it is asked for."""
OTHER_KINDS = "orchestrator.store.remote"


def open_extents(url: str, dim: int, codes: CodeShape | None = None) -> Extents:
    """The vectors of the rollout whose folder is at `url`; nothing is created or asked before the first call.

    Args:
        codes: they are codes of this shape and kept as such, `dim` bits or a few times as many a row; None: floats.
    """
    return _folder(url).extents(RowFormat(dim, codes))


def open_table(url: str, name: str, n: int, dim: int) -> Table:
    """A table (n, dim) float32 in a rollout's folder, as the adapted gallery is."""
    return _folder(url).table(name, n, dim)


def write_array(url: str, name: str, array: npt.NDArray[Any]) -> None:
    """Write a small array into a rollout's folder, atomically and durably."""
    _folder(url).write_array(name, array)


def read_array(url: str, name: str, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> npt.NDArray[Any]:
    """The first `shape` of an array in a rollout's folder, read-only, memory-mapped where the store is local.

    Raises:
        CorruptExtentError: missing or cut short.
    """
    return _folder(url).read_array(name, dtype, shape)


def create_folder(url: str) -> None:
    """Make a folder for arrays, with those above it; one that is there already is fine."""
    _folder(url).create()


def new_folder(root_url: str, gallery_id: int) -> str:
    """The URL of a folder for a rollout that nobody else has."""
    return _root(root_url).new_folder(gallery_id)


def list_folders(root_url: str) -> list[str]:
    """The URLs of all rollouts' folders, sorted."""
    return _root(root_url).list_folders()


def remove_folder(root_url: str, url: str) -> None:
    """Remove a rollout's folder; one that is gone already is fine.

    Raises:
        UsageError: it is not one of this root's folders; nothing was removed.
    """
    _root(root_url).remove_folder(url)


def probe(root_url: str) -> int | None:
    """Write, read back and delete something small. Returns the free bytes, None where nobody can say.

    Raises:
        UnreachableError: one of these does not work.
    """
    return _root(root_url).probe()


def _folder(url: str) -> Folder:
    return cast(Folder, _kind(url).open_folder(url))


def _root(url: str) -> Root:
    return cast(Root, _kind(url).open_root(url))


def _kind(url: str) -> Any:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme = "file"
    elif "@" in rest.partition("/")[0]:  # the URL is not repeated: it holds a password
        raise UsageError(
            f"the {scheme}:// URL of the store holds credentials; leave them out and set them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY for s3://)."
        )
    return import_module(KINDS.get(scheme, OTHER_KINDS))


__all__ = [
    "ADAPTED",
    "ROWS",
    "SCORES",
    "CorruptExtentError",
    "Extents",
    "Table",
    "create_folder",
    "list_folders",
    "new_folder",
    "open_extents",
    "open_table",
    "probe",
    "read_array",
    "remove_folder",
    "write_array",
]
