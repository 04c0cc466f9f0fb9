"""Extents: one file a rollout, float32 vectors in rank order, so that a batch is one contiguous piece.

Order, address and version are the same number (ADR 1): batch n of B items lies at byte n·B·dim·4. A retry writes the
same bytes to the same place. `rows.u32` beside it holds the row of every rank; it is derived from the ledger's plan.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.errors import StoreFullError, UnreachableError
from orchestrator.failpoints import reach
from orchestrator.store.base import CorruptExtentError
from orchestrator.store.local import sync_folder

Vectors = npt.NDArray[np.float32]

VECTORS, ADAPTED, ROWS = "vectors.f32", "adapted.f32", "rows.u32"

__all__ = [
    "ADAPTED", "ROWS", "VECTORS", "CorruptExtentError", "ExtentFile", "new_folder", "read_rows", "sync_folder", "write_rows",
]  # fmt: skip

_checksums = ThreadPoolExecutor(max_workers=2, thread_name_prefix="checksum")


def new_folder(root: Path, gallery_id: int) -> Path:
    """A folder for a rollout's extents that nobody else has; created, and known to be on disk."""
    folder = root / f"gallery-{gallery_id}" / secrets.token_hex(8)
    with _store_errors(folder):
        folder.mkdir(parents=True)
        sync_folder(folder.parent)
    return folder


class ExtentFile:
    """The vectors of one rollout: (n, dim) float32, row i at rank i.

    Writers open it once and write batch after batch from any thread; readers map it.
    """

    def __init__(self, folder: Path, name: str, n: int, dim: int) -> None:
        self.path = folder / name
        self.n = n
        self.dim = dim
        self._descriptor: int | None = None

    @property
    def size_bytes(self) -> int:
        return self.n * self.dim * 4

    def create(self) -> None:
        """Make the file at its full size. Space is taken as batches arrive; a full disk shows at the write."""
        with _store_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.ftruncate(descriptor, self.size_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(self.path.parent)

    def write(self, first: int, vectors: Vectors) -> int:
        """Write ranks `first` … durably: pwrite, fdatasync. Returns the CRC-32 of the bytes.

        Raises:
            StoreFullError: no space left; nothing was committed, the region may hold part of the bytes.
            UnreachableError: any other fault of the file system.
        """
        if vectors.dtype != np.float32 or vectors.shape[1:] != (self.dim,) or first + len(vectors) > self.n:
            raise ValueError(
                f"{vectors.dtype} {vectors.shape} at {first} does not fit {self.n} × {self.dim} float32"
            )
        data = np.ascontiguousarray(vectors).data.cast("B")
        checksum = _checksums.submit(zlib.crc32, data)  # beside the disk, not before it
        with _store_errors(self.path):
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDWR)
            offset, done = first * self.dim * 4, 0
            for end in (len(data) // 2, len(data)):
                while done < end:
                    done += os.pwrite(self._descriptor, data[done:end], offset + done)
                reach("mid_write" if end < len(data) else "written")
            os.fdatasync(self._descriptor)
        reach("synced")
        return checksum.result()

    def map(self) -> Vectors:
        """All vectors, memory-mapped and read-only: (n, dim) float32."""
        if self.size_bytes == 0:
            return np.zeros((self.n, self.dim), np.float32)
        try:
            return np.memmap(self.path, np.float32, "r", shape=(self.n, self.dim))
        except (OSError, ValueError) as error:
            raise UnreachableError(
                f"extent {self.path} cannot be read ({error}); bring the store back, or roll the rollout back."
            ) from error

    def read(self, first: int, count: int, crc: int | None) -> Vectors:
        """Ranks `first` … `first + count - 1`, checked against the CRC that was committed: (count, dim) float32.

        Raises:
            CorruptExtentError: the bytes are not those that were committed.
        """
        vectors = np.array(self.map()[first : first + count])
        if crc is not None and zlib.crc32(vectors.data.cast("B")) != crc:
            raise CorruptExtentError(
                f"extent {self.path} at ranks {first}–{first + count - 1} does not match its checksum {crc:#010x}; "
                "restore the file from a backup, or roll the rollout back."
            )
        return vectors

    def close(self) -> None:
        """Close the writer's descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def write_rows(folder: Path, row_of: npt.NDArray[np.uint32]) -> None:
    """Write the row of every rank, atomically."""
    path, partial = folder / ROWS, folder / f".{ROWS}.{secrets.token_hex(4)}"
    with _store_errors(path):
        with partial.open("wb") as file:
            file.write(np.ascontiguousarray(row_of, dtype="<u4").data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync_folder(folder)


def read_rows(folder: Path, n: int) -> npt.NDArray[np.uint32]:
    """The row of every rank, memory-mapped: (n,) uint32."""
    if n == 0:
        return np.zeros(0, np.uint32)
    try:
        return np.memmap(folder / ROWS, "<u4", "r", shape=(n,))
    except (OSError, ValueError) as error:
        raise UnreachableError(f"{folder / ROWS} cannot be read ({error}); bring the store back.") from error


@contextlib.contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(
                f"no space left while writing {path}; nothing of this batch was committed. "
                "Free space or move the store, then `hotrefresh rollout resume`."
            ) from error
        raise UnreachableError(
            f"cannot write {path}: {error.strerror or error}; correct the store and resume."
        ) from error
