"""Object storage: one immutable object for each (first rank, fence), put in one request.

`vectors/000000123456.2.f32` holds the batch that starts at rank 123,456, written under fence 2 (….2.bits, where its rows
are codes). Tables are objects of
`CHUNK_ROWS` rows each, named by their first row.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UnreachableError
from orchestrator.failpoints import reach
from orchestrator.store.base import (
    CHUNK_ROWS,
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
from orchestrator.store.objects import Objects
from orchestrator.store.row_format import VECTOR_DTYPE, RowFormat, Vectors

MARK = ".folder"
READ_TOGETHER = 4
PROBE_BYTES = 4096


def open_folder(url: str) -> Folder:
    """The folder of a rollout."""
    return RemoteFolder(url)


def open_root(url: str) -> Root:
    """The prefix below which the rollouts' folders are."""
    return RemoteRoot(url)


class RemoteExtents:
    """Extents as objects."""

    def __init__(self, objects: Objects, rows: RowFormat) -> None:
        self.url = objects.url
        self.format = rows
        self._objects = objects

    def _name(self, first_rank: int, fence: int) -> str:
        return f"vectors/{first_rank:012d}.{fence}.{self.format.ending}"

    def write(self, first_rank: int, fence: int, vectors: Vectors) -> int:
        """Put one object: (n, dim) float32. Returns the CRC-32 of its bytes."""
        data = bytes_to_write(first_rank, fence, vectors, self.format)
        crc = checksum(data)
        name = self._name(first_rank, fence)
        with store_errors("write", f"{self.url}/{name}"):
            reach("mid_write")  # half of a request is nothing: no object appears
            self._objects.put(name, data)
            reach("written")  # the store has it for good; nobody was told yet
            reach("synced")
        return crc.result()

    def read(self, first_rank: int, count: int, fence: int, crc: int | None) -> Vectors:
        """What was put under that fence: (count, dim) float32."""
        if not count:
            return np.zeros((0, self.format.dim), VECTOR_DTYPE)
        name, size = self._name(first_rank, fence), count * self.format.row_bytes
        what = f"extent {self.url}/{name}"
        data = _there(self._objects.get(name, size), what)
        check_bytes(data, size, crc, what)
        return self.format.from_bytes(data)

    def pick(self, first_rank: int, count: int, fence: int, crc: int | None, places: Places) -> Vectors:
        """Some rows of it: (len(places), dim) float32. The whole object is read: a request costs more than its bytes."""
        return self.read(first_rank, count, fence, crc)[places]

    def close(self) -> None:
        """Nothing is held open."""


class RemoteTable:
    """A table in objects of CHUNK_ROWS rows."""

    def __init__(self, objects: Objects, name: str, n: int, dim: int) -> None:
        self.url = f"{objects.url}/{name}"
        self.n = n
        self.dim = dim
        self._objects = objects
        self._name = name
        self._waiting: list[Vectors] = []
        self._waiting_rows = 0
        self._put_rows = 0

    def create(self) -> None:
        """Begin; objects of an earlier attempt are overwritten one by one."""
        self.close()

    def append(self, vectors: Vectors) -> None:
        """The next rows: (m, dim) float32; full chunks are put at once."""
        rows = self._put_rows + self._waiting_rows
        bytes_to_write(rows, 1, vectors, RowFormat(self.dim))
        if rows + len(vectors) > self.n:
            raise ValueError(f"{rows + len(vectors)} rows do not fit a table of {self.n}")
        self._waiting.append(vectors.copy())
        self._waiting_rows += len(vectors)
        while self._waiting_rows >= CHUNK_ROWS:
            self._put_chunk()

    def _put_chunk(self) -> None:
        whole = np.concatenate(self._waiting)
        chunk, rest = whole[:CHUNK_ROWS], whole[CHUNK_ROWS:]
        self._objects.put(self._chunk_name(self._put_rows), little_endian(chunk))
        self._put_rows += len(chunk)
        self._waiting, self._waiting_rows = [rest], len(rest)

    def finish(self) -> None:
        """Put what waits."""
        rows = self._put_rows + self._waiting_rows
        if rows != self.n:
            raise ValueError(f"{rows} rows are not the {self.n} of the table")
        if self._waiting_rows:
            self._put_chunk()
        self.close()

    def close(self) -> None:
        """Forget what waits. Objects that were put stay until the folder is removed."""
        self._waiting, self._waiting_rows, self._put_rows = [], 0, 0

    def map(self) -> Vectors:
        """All rows, in memory, read-only: (n, dim) float32."""
        whole = np.empty((self.n, self.dim), VECTOR_DTYPE)
        with ThreadPoolExecutor(READ_TOGETHER, thread_name_prefix="table") as threads:
            list(threads.map(lambda first: self._read_chunk(whole, first), range(0, self.n, CHUNK_ROWS)))
        whole.flags.writeable = False
        return whole

    def _read_chunk(self, whole: Vectors, first: int) -> None:
        name, buffer = self._chunk_name(first), whole[first : first + CHUNK_ROWS]
        what = f"{self._objects.url}/{name}"
        data = _there(self._objects.get(name, buffer.nbytes), what)
        check_bytes(data, buffer.nbytes, None, what)
        buffer[:] = np.frombuffer(data, VECTOR_DTYPE).reshape(buffer.shape)

    def _chunk_name(self, first: int) -> str:
        return f"{self._name}/{first:012d}"


class RemoteFolder:
    """The prefix of one rollout."""

    def __init__(self, url: str) -> None:
        self._objects = Objects(url)

    def create(self) -> None:
        """Nothing: a prefix is there when an object is."""

    def extents(self, rows: RowFormat) -> Extents:
        """The rollout's vectors."""
        return RemoteExtents(self._objects, rows)

    def table(self, name: str, n: int, dim: int) -> Table:
        """A table of that name."""
        return RemoteTable(self._objects, name, n, dim)

    def write_array(self, name: str, array: npt.NDArray[Any]) -> None:
        """Put one object."""
        self._objects.put(name, little_endian(array))

    def read_array(self, name: str, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> npt.NDArray[Any]:
        """The array, in memory, read-only."""
        expected = array_bytes(dtype, shape)
        if expected == 0:
            return np.zeros(shape, dtype)
        what = f"{self._objects.url}/{name}"
        data = _there(self._objects.get(name, expected), what)
        if len(data) < expected:
            raise corrupt(what, f"has {len(data)} bytes instead of {expected}")
        return np.frombuffer(memoryview(data)[:expected], dtype).reshape(shape)


class RemoteRoot:
    """The prefix below which the rollouts' folders are."""

    def __init__(self, url: str) -> None:
        self._objects = Objects(url)

    def new_folder(self, gallery_id: int) -> str:
        """Marked by an empty object, so that it is listed and a store that cannot be written shows here."""
        name = new_folder_name(gallery_id)
        self._objects.put(f"{name}/{MARK}", memoryview(b""))
        return f"{self._objects.url}/{name}"

    def list_folders(self) -> list[str]:
        """The rollouts' folders, sorted."""
        galleries = [name for name in self._objects.names() if name.startswith("gallery-")]
        names = (f"{gallery}/{name}" for gallery in galleries for name in self._objects.names(gallery))
        return sorted(f"{self._objects.url}/{name}" for name in names if is_folder_name(name))

    def remove_folder(self, url: str) -> None:
        """Remove all objects of a rollout."""
        name = url.removeprefix(f"{self._objects.url}/")
        if name == url or not is_folder_name(name):
            raise refuse_removal(self._objects.url, url)
        self._objects.remove(name)

    def probe(self) -> int | None:
        """Put, get and delete a small object; nobody can say how much space is left."""
        content, name = secrets.token_bytes(PROBE_BYTES), f".probe-{secrets.token_hex(4)}"
        self._objects.put(name, memoryview(content))
        try:
            if self._objects.get(name, PROBE_BYTES) != content:
                raise UnreachableError(
                    f"{self._objects.url} does not give back what was written to it; use another store."
                )
        finally:
            self._objects.remove(name)
        return None


def _there(data: bytes | None, what: str) -> bytes:
    if data is None:
        raise corrupt(what, "is missing")
    return data
