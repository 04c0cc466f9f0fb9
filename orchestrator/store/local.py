"""A local folder: one sparse file a fence, rows in rank order.

`vectors.f32` holds what was written under fence 1, `vectors.2.f32` under fence 2 … (`vectors.bits` …, where the rows are
codes); the row of rank i stands i rows behind the start of its file, which grows as ranks appear. Nearly every batch is
committed under its first fence.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UnreachableError
from orchestrator.failpoints import reach
from orchestrator.store.base import (
    Extents,
    Folder,
    Places,
    Root,
    Table,
    array_bytes,
    bytes_to_write,
    check_bytes,
    checksum,
    corrupt,
    is_folder_name,
    little_endian,
    new_folder_name,
    refuse_removal,
    store_errors,
)
from orchestrator.store.row_format import VECTOR_DTYPE, RowFormat, Vectors

PROBE_BYTES = 4096


def open_folder(url: str) -> Folder:
    """The folder of a rollout."""
    return LocalFolder(url)


def open_root(url: str) -> Root:
    """The folder below which the rollouts' folders are."""
    return LocalRoot(url)


def path_of(url: str) -> Path:
    """The path of a URL with or without `file://`."""
    return Path(url.removeprefix("file://"))


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in made:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _FenceFile:
    """One file that is written. One thread at a time: a failed sync shows once, and all bytes before it are in doubt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._broken = False

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes durably at an offset: pwrite, fdatasync."""
        with self._lock:
            descriptor = self._open()
            done = 0
            for end in (len(data) // 2, len(data)):
                while done < end:
                    done += os.pwrite(descriptor, data[done:end], offset + done)
                if end < len(data):
                    reach("mid_write")
            with self._broken_on_error():
                reach("written")
                os.fdatasync(descriptor)

    def _open(self) -> int:
        if self._broken:
            raise UnreachableError(
                f"an earlier sync of {self.path} failed, so nothing more is written to it; "
                "correct the disk, then `hotrefresh rollout resume`: the batch is claimed anew and goes to another file."
            )
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            with self._broken_on_error():
                sync_folder(self.path.parent)  # also where it was there: its maker may have died before this
        return self._descriptor

    @contextlib.contextmanager
    def _broken_on_error(self) -> Iterator[None]:
        # After a failed sync Linux drops the dirty pages and calls the next sync a success: never ask this file twice.
        try:
            yield
        except OSError:
            self._broken = True
            self._close()
            raise

    def close(self) -> None:
        """Close the descriptor; the next write opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


class LocalExtents:
    """Extents in a local folder."""

    def __init__(self, url: str, rows: RowFormat) -> None:
        self.url = url
        self.format = rows
        self._folder = path_of(url)
        self._files: dict[int, _FenceFile] = {}

    def _path(self, fence: int) -> Path:
        ending = self.format.ending
        return self._folder / (f"vectors.{ending}" if fence == 1 else f"vectors.{fence}.{ending}")

    def write(self, first_rank: int, fence: int, vectors: Vectors) -> int:
        """Make vectors durable: (n, dim) float32. Returns the CRC-32 of their bytes."""
        data = bytes_to_write(first_rank, fence, vectors, self.format)
        crc = checksum(data)
        path = self._path(fence)
        with store_errors("write", str(path)):
            self._files.setdefault(fence, _FenceFile(path)).write(first_rank * self.format.row_bytes, data)
            reach("synced")
        return crc.result()

    def read(self, first_rank: int, count: int, fence: int, crc: int | None) -> Vectors:
        """What was written under that fence: (count, dim) float32."""
        return self.format.from_bytes(self._bytes(first_rank, count, fence, crc, [(0, count)]))

    def pick(self, first_rank: int, count: int, fence: int, crc: int | None, places: Places) -> Vectors:
        """Some rows of it: (len(places), dim) float32."""
        if 2 * len(places) >= count:
            return self.read(first_rank, count, fence, crc)[places]
        pieces = [(int(place), 1) for place in places]
        return self.format.from_bytes(self._bytes(first_rank, count, fence, None, pieces))

    def _bytes(
        self, first_rank: int, count: int, fence: int, crc: int | None, pieces: Sequence[tuple[int, int]]
    ) -> memoryview:
        """Pieces (first row, rows) of an extent, one behind the other."""
        each = self.format.row_bytes
        buffer = memoryview(bytearray(each * sum(rows for _, rows in pieces)))
        path = self._path(fence)
        what = f"extent {path} at ranks {first_rank}–{first_rank + count - 1}"
        if len(buffer):
            with self._reading(path, what) as descriptor:
                at = 0
                for first, rows in pieces:
                    part = buffer[at : at + rows * each]
                    done = _read_into(descriptor, (first_rank + first) * each, part)
                    check_bytes(part[:done], len(part), crc, what)
                    at += len(part)
        return buffer

    @contextlib.contextmanager
    def _reading(self, path: Path, what: str) -> Iterator[int]:
        with store_errors("read", str(path)):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                if self._folder.is_dir():
                    raise corrupt(what, "is missing") from None
                raise
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the writer's descriptors. A file whose sync failed stays broken for this object."""
        for file in list(self._files.values()):
            file.close()


def _read_into(descriptor: int, offset: int, buffer: memoryview) -> int:
    """Fill the buffer from an offset on; how many bytes there were."""
    done = 0
    while done < len(buffer) and (got := os.preadv(descriptor, [buffer[done:]], offset + done)):
        done += got
    return done


class LocalTable:
    """A table in one file, which gets its name when it is complete."""

    def __init__(self, url: str, name: str, n: int, dim: int) -> None:
        self.url = f"{url}/{name}"
        self.n = n
        self.dim = dim
        self._path = path_of(url) / name
        self._partial: Path | None = None
        self._descriptor: int | None = None
        self._rows = 0

    def create(self) -> None:
        """Begin an unnamed file."""
        self.close()
        self._partial = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with store_errors("write", str(self._path)):
            self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._rows = 0

    def append(self, vectors: Vectors) -> None:
        """The next rows: (m, dim) float32."""
        assert self._descriptor is not None, "create() comes first"
        data = bytes_to_write(self._rows, 1, vectors, RowFormat(self.dim))
        if self._rows + len(vectors) > self.n:
            raise ValueError(f"{self._rows + len(vectors)} rows do not fit a table of {self.n}")
        offset, done = self._rows * self.dim * 4, 0
        with store_errors("write", str(self._path)):
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], offset + done)
        self._rows += len(vectors)

    def finish(self) -> None:
        """Sync the file, then give it its name."""
        assert self._descriptor is not None, "create() comes first"
        assert self._partial is not None
        if self._rows != self.n:
            raise ValueError(f"{self._rows} rows are not the {self.n} of the table")
        try:
            with store_errors("write", str(self._path)):
                os.fsync(self._descriptor)
                self._partial.rename(self._path)
                sync_folder(self._path.parent)
        finally:
            self.close()

    def close(self) -> None:
        """Remove what was begun and not finished."""
        if self._descriptor is not None and self._partial is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def map(self) -> Vectors:
        """All rows, memory-mapped and read-only: (n, dim) float32."""
        return _mapped(self._path, VECTOR_DTYPE, (self.n, self.dim))


class LocalFolder:
    """The folder of one rollout."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def create(self) -> None:
        """Made, and known to be on disk."""
        with store_errors("write", self._url):
            make_folders(path_of(self._url))

    def extents(self, rows: RowFormat) -> Extents:
        """The rollout's vectors."""
        return LocalExtents(self._url, rows)

    def table(self, name: str, n: int, dim: int) -> Table:
        """A table of that name."""
        return LocalTable(self._url, name, n, dim)

    def write_array(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write beside, sync, rename."""
        path = path_of(self._url) / name
        partial = path.with_name(f".{name}.{secrets.token_hex(4)}")
        with store_errors("write", str(path)):
            try:
                _write_synced(partial, little_endian(array))
                partial.rename(path)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

    def read_array(self, name: str, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> npt.NDArray[Any]:
        """The array, memory-mapped and read-only."""
        return _mapped(path_of(self._url) / name, dtype, shape)


class LocalRoot:
    """The folder below which the rollouts' folders are."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") or "/"
        self._path = path_of(self._url)

    def new_folder(self, gallery_id: int) -> str:
        """Made, and known to be on disk."""
        name = new_folder_name(gallery_id)
        folder = self._path / name
        with store_errors("write", str(folder)):
            make_folders(folder)
        return f"{self._url}/{name}"

    def list_folders(self) -> list[str]:
        """The rollouts' folders, sorted."""
        with store_errors("list", self._url):
            names = (
                f"{gallery}/{name}"
                for gallery in _folders(self._path)
                for name in _folders(self._path / gallery)
            )
            return sorted(f"{self._url}/{name}" for name in names if is_folder_name(name))

    def remove_folder(self, url: str) -> None:
        """Remove a rollout's folder."""
        folder, root = path_of(url).resolve(), self._path.resolve()  # so that neither .. nor a link leads out
        if not folder.is_relative_to(root) or not is_folder_name(folder.relative_to(root).as_posix()):
            raise refuse_removal(self._url, url)
        with store_errors("remove", url):
            if folder.exists():
                shutil.rmtree(folder)
                sync_folder(folder.parent)

    def probe(self) -> int | None:
        """Write, read back and delete a small file. Returns the free bytes."""
        content = secrets.token_bytes(PROBE_BYTES)
        path = self._path / f".probe-{secrets.token_hex(4)}"
        with store_errors("use", self._url):
            self._path.mkdir(parents=True, exist_ok=True)
            try:
                _write_synced(path, memoryview(content))
                if path.read_bytes() != content:
                    raise OSError(errno.EIO, "it does not give back what was written to it")
            finally:
                path.unlink(missing_ok=True)
            return shutil.disk_usage(self._path).free


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _write_synced(path: Path, data: memoryview) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _mapped(path: Path, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> npt.NDArray[Any]:
    expected = array_bytes(dtype, shape)
    if expected == 0:
        return np.zeros(shape, dtype)
    with store_errors("read", str(path)):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            if path.parent.is_dir():
                raise corrupt(str(path), "is missing") from None
            raise
        if size < expected:
            raise corrupt(str(path), f"has {size} bytes instead of {expected}")
        return np.memmap(path, dtype, "r", shape=shape)
