"""What every kind of store agrees on: the protocols, the names of files, the checks, the errors.

The address of a batch's bytes is (folder URL, fence, first rank). Encoders on GPUs are not bitwise repeatable, so a
worker that lost its claim must not be able to touch what a newer claim committed: each fence has a place of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.errors import HotrefreshError, StoreFullError, UnreachableError, UsageError
from orchestrator.store.row_format import RowFormat, Vectors

Places = npt.NDArray[np.int64]

CHUNK_ROWS = 65_536
"""Rows in one object of a table on object storage."""

_FOLDER = re.compile(r"gallery-\d+/[0-9a-f]{16}")


def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="checksum")


_checksums = _new_pool()


def _renew_pool() -> None:
    global _checksums
    _checksums = _new_pool()  # threads do not cross a fork; a checksum would be waited for without end


os.register_at_fork(after_in_child=_renew_pool)


class CorruptExtentError(HotrefreshError):
    """The bytes of an extent are not those that were committed."""

    code = "corrupt_extent"


class Extents(Protocol):
    """The vectors of one rollout, batch by batch. Writes and reads may come from any thread.

    Fences of one rank only rise, also where a batch is split: a part of it goes on from the fence of the whole. Sums are
    over the bytes as they are kept (`format`); of codes, vectors come back as unit vectors on their lattice.
    """

    url: str
    format: RowFormat

    def write(self, first_rank: int, fence: int, vectors: Vectors) -> int:
        """Make the vectors of ranks `first_rank` … durable: (n, dim) float32, n ≥ 1. Returns their CRC-32.

        Raises:
            StoreFullError: no space left; nothing was committed.
            UnreachableError: any other fault of the store. Try again with a new fence.
            ValueError: the vectors do not fit.
        """

    def read(self, first_rank: int, count: int, fence: int, crc: int | None) -> Vectors:
        """The vectors that `write(first_rank, fence, …)` wrote, all `count` of them: (count, dim) float32.

        Raises:
            CorruptExtentError: missing, cut short, or not what the CRC-32 says.
            UnreachableError: the store does not answer.
        """

    def pick(self, first_rank: int, count: int, fence: int, crc: int | None, places: Places) -> Vectors:
        """Some rows of what `read` gives: (len(places), dim) float32, in the order of `places`, each 0..count - 1.

        The checksum is compared where most of the extent is asked for, and where the store gives nothing but all of it.

        Raises:
            CorruptExtentError, UnreachableError: as in `read`.
        """

    def close(self) -> None:
        """Let go of what writing holds open."""


class Table(Protocol):
    """(n, dim) float32 in row order, written once from top to bottom, then read as a whole."""

    url: str
    n: int
    dim: int

    def create(self) -> None:
        """Begin; what an earlier attempt left is no longer in the way."""

    def append(self, vectors: Vectors) -> None:
        """The next rows: (m, dim) float32. They may wait in memory until there is a full chunk."""

    def finish(self) -> None:
        """Make the table durable and readable. Raises ValueError when rows are missing."""

    def close(self) -> None:
        """Give up what was begun and not finished; nothing happens after `finish`."""

    def map(self) -> Vectors:
        """All rows, read-only, memory-mapped where the store is local: (n, dim) float32.

        Raises:
            CorruptExtentError: missing or cut short.
        """


class Folder(Protocol):
    """The place of one rollout's extents and of the few files beside them."""

    def create(self) -> None:
        """Make it, where folders are something that is made."""

    def extents(self, rows: RowFormat) -> Extents:
        """The rollout's vectors, kept as `rows` says."""

    def table(self, name: str, n: int, dim: int) -> Table:
        """A table of that name."""

    def write_array(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a small array, atomically and durably; a reader sees the one before or this one."""

    def read_array(self, name: str, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> npt.NDArray[Any]:
        """The first `shape` of an array, read-only; it may have been written longer since.

        Raises:
            CorruptExtentError: missing or cut short.
        """


class Root(Protocol):
    """The place below which all rollouts' folders are."""

    def new_folder(self, gallery_id: int) -> str:
        """The URL of a folder that nobody else has."""

    def list_folders(self) -> list[str]:
        """The URLs of all folders that `new_folder` made, sorted."""

    def remove_folder(self, url: str) -> None:
        """Remove a folder and all in it; one that is gone already is fine.

        Raises:
            UsageError: it is not one of this root's folders; nothing was removed.
        """

    def probe(self) -> int | None:
        """Write, read back and delete something small. Returns the free bytes, None where the store has no such limit.

        Raises:
            UnreachableError: one of these does not work.
        """


def new_folder_name(gallery_id: int) -> str:
    """A folder's name below the root, never drawn twice."""
    return f"gallery-{gallery_id}/{secrets.token_hex(8)}"


def is_folder_name(name: str) -> bool:
    """Whether a path below the root is one that `new_folder_name` draws."""
    return _FOLDER.fullmatch(name) is not None


def refuse_removal(root_url: str, url: str) -> UsageError:
    """The error for a folder that is not the root's to remove."""
    return UsageError(
        f"{url} is not a rollout's folder below {root_url}; nothing was removed. Remove it by hand if it is yours."
    )


def bytes_to_write(first_rank: int, fence: int, vectors: Vectors, rows: RowFormat) -> memoryview:
    """The vectors as bytes.

    Raises:
        ValueError: they do not fit, or the address is none.
    """
    if not len(vectors) or first_rank < 0 or fence < 1:
        raise ValueError(
            f"{vectors.shape} at rank {first_rank}, fence {fence} does not fit: one row or more, ranks from 0, fences from 1"
        )
    return rows.to_bytes(vectors)


def checksum(data: memoryview) -> Future[int]:
    """The CRC-32, computed beside the disk or the network, not before it."""
    return _checksums.submit(zlib.crc32, data)


def check_bytes(data: bytes | memoryview, expected: int, crc: int | None, what: str) -> None:
    """Compare what was read with what was committed.

    Raises:
        CorruptExtentError: it is shorter or longer than `expected` bytes, or has another CRC-32.
    """
    if len(data) != expected:
        raise corrupt(what, f"has {len(data)} bytes instead of {expected}")
    if crc is not None and zlib.crc32(data) != crc:
        raise corrupt(what, f"does not match its checksum {crc:#010x}")


def corrupt(what: str, finding: str) -> CorruptExtentError:
    """The error for bytes that are not those that were committed."""
    return CorruptExtentError(f"{what} {finding}; restore it from a backup, or roll the rollout back.")


def array_bytes(dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> int:
    """How many bytes an array of that shape has."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def little_endian(array: npt.NDArray[Any]) -> memoryview:
    """An array's bytes as they are stored."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).data.cast("B")


@contextlib.contextmanager
def store_errors(doing: str, url: str) -> Iterator[None]:
    """Turn an OSError into the error that callers know.

    Args:
        doing: a verb: "write", "read" …
    """
    try:
        yield
    except OSError as error:
        raise translated(error, doing, url) from error


def translated(error: Exception, doing: str, url: str) -> UnreachableError:
    """The error that says what was tried where, why it failed and what to do."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return store_full(url)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return UnreachableError(
        f"cannot {doing} {url}: {' '.join(reason.split()).rstrip('.')}; "
        "bring the store back, then `hotrefresh rollout resume`."
    )


def store_full(url: str) -> StoreFullError:
    """The error for a store without space."""
    return StoreFullError(
        f"no space left while writing {url}; nothing of this batch was committed. "
        "Free space or move the store, then `hotrefresh rollout resume`."
    )
