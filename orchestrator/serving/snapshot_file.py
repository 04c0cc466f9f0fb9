"""One file of arrays with a description: it is there as a whole or not at all, and every byte of it is checked when it is read.

    array | array | … | description: JSON | its length: 8 bytes | its CRC-32: 4 bytes | MAGIC

The description says where each array begins, of what shape and type it is, and its CRC-32. It stands last, because rows may be
written, and written again, before it is known how many there are.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ConflictError, HotrefreshError, UnreachableError
from orchestrator.failpoints import reach
from orchestrator.store.base import little_endian
from orchestrator.store.local import make_folders, sync_folder

FORMAT = 1
MAGIC = b"hotrefresh replica\n"
_TAIL = struct.Struct("<QI")
# What an array may be of: plain numbers, nothing that could call anything.
_TYPES = ("<f4", "<i4", "<i8", "<u8", "|u1")
# Read and checked together: what fits the processor's cache.
_CHUNK = 1 << 20


class UnusableSnapshotError(HotrefreshError):
    """A snapshot that a replica cannot begin from; the message says why. It is loaded fresh then."""

    code = "unusable_snapshot"


@dataclass(frozen=True)
class Kept:
    """What a file held: its description without what concerns the file, and its arrays, writable copies in memory."""

    description: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes to a folder, which is made; what writers left that were killed is removed.

    Raises:
        ConflictError: another process is writing.
        UnreachableError: the folder cannot be used.
    """
    with _errors(folder):
        make_folders(folder)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConflictError(
                f"another process is writing to {folder}; its snapshot serves as well."
            ) from error
        for partial in folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)  # which gives the lock back


class Draft:
    """A file in the making, under no name that is read until `finish`. The caller is the folder's `only_writer`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        with _errors(path):
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._arrays: dict[str, dict[str, Any]] = {}
        self._end = 0

    def write(self, offset: int, array: npt.NDArray[Any]) -> None:
        """Put an array's bytes at an offset of the file."""
        data, done = little_endian(array), 0
        with _errors(self.path):
            while done < len(data):
                done += os.pwrite(self._file, data[done:], offset + done)

    def declare(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """What was written behind the arrays before is an array of that type and shape."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._arrays[name] = {"dtype": dtype, "shape": list(shape), "offset": self._end, "bytes": size}
        self._end += size

    def append(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write an array behind those before."""
        array = np.ascontiguousarray(array)
        self.write(self._end, array)
        self.declare(name, array.dtype.newbyteorder("<").str, array.shape)

    def finish(self, description: dict[str, Any]) -> None:
        """Describe, sync, and give the file its name: it takes the place of the one before.

        Raises:
            UnreachableError: it cannot be written; the file before is still there.
        """
        with _errors(self.path):
            for each in self._arrays.values():
                each["crc"] = self._crc(each["offset"], each["bytes"])
            held = {"format": FORMAT, "arrays": self._arrays, "description": description}
            text = json.dumps(held, ensure_ascii=False).encode()
            tail = text + _TAIL.pack(len(text), zlib.crc32(text)) + MAGIC
            self.write(self._end, np.frombuffer(tail, np.uint8))
            reach("snapshot_written")
            os.fsync(self._file)
            reach("snapshot_synced")
            self._partial.rename(self.path)
            reach("snapshot_named")
            sync_folder(self.path.parent)

    def _crc(self, offset: int, size: int) -> int:
        """Of what the file holds: rows were written at random places, some of them twice."""
        crc, done = 0, 0
        while done < size:
            part = os.pread(self._file, min(_CHUNK, size - done), offset + done)
            if not part:
                raise OSError(f"its rows end at byte {offset + done}")
            crc, done = zlib.crc32(part, crc), done + len(part)
        return crc

    def close(self) -> None:
        """Remove what was not finished."""
        os.close(self._file)
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreachableError(
            f"cannot write {path}: {reason}; searches go on, and a restart loads what was there before."
        ) from error


def read(path: Path) -> Kept:
    """All of a file. Read, not mapped: a fault of the disk is then an error and not the end of the process.

    Raises:
        UnusableSnapshotError: it is not there, not whole, not of this format, or a byte of it is another.
    """
    try:
        with path.open("rb") as file:
            held = _description(file)
            arrays = {name: _array(file, name, where) for name, where in held["arrays"].items()}
    except FileNotFoundError:
        raise UnusableSnapshotError("there is no snapshot.") from None
    except OSError as error:
        raise UnusableSnapshotError(f"it cannot be read: {error.strerror or error}.") from error
    return Kept(held["description"], arrays)


def _description(file: BinaryIO) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    tail_at = size - len(MAGIC) - _TAIL.size
    if tail_at < 0:
        raise UnusableSnapshotError(f"it ends after {size} bytes.")
    file.seek(tail_at)
    tail = file.read()
    length, crc = _TAIL.unpack(tail[: _TAIL.size])
    if tail[_TAIL.size :] != MAGIC or length > tail_at:
        raise UnusableSnapshotError("its end is not that of a snapshot.")
    file.seek(tail_at - length)
    text = file.read(length)
    if zlib.crc32(text) != crc:
        raise UnusableSnapshotError("its description does not match its checksum.")
    held: dict[str, Any] = json.loads(text)
    if held["format"] != FORMAT:
        raise UnusableSnapshotError(f"it is of format {held['format']}, and this release reads {FORMAT}.")
    if sum(each["bytes"] for each in held["arrays"].values()) != tail_at - length:
        raise UnusableSnapshotError("its arrays are not as long as they should be.")
    return held


def _array(file: BinaryIO, name: str, where: dict[str, Any]) -> npt.NDArray[Any]:
    if where["dtype"] not in _TYPES:
        raise UnusableSnapshotError(f"its {name} are of type {where['dtype']}.")
    array = np.empty(where["shape"], where["dtype"])
    if array.nbytes != where["bytes"]:
        raise UnusableSnapshotError(f"its {name} do not fit their shape.")
    file.seek(where["offset"])
    data, done, crc = array.reshape(-1).view(np.uint8).data, 0, 0
    while done < len(data):
        part = data[done : done + _CHUNK]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise UnusableSnapshotError(f"its {name} end too early.")
        crc, done = zlib.crc32(part, crc), done + len(part)
    if crc != where["crc"]:
        raise UnusableSnapshotError(f"its {name} do not match their checksum.")
    return array
