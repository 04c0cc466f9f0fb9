"""Opening files of unknown origin: only plain files, never waited for, their size known before a byte is read.

What is checked is the descriptor that is then read, not a name that somebody can point elsewhere in between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

# A pipe without a writer would be waited for, a terminal would become ours.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


class NotPlainError(OSError):
    """The name leads to a folder, a pipe, a socket or a device."""


class TooLargeError(OSError):
    """The file is larger than its reader allows."""


@contextmanager
def open_plain(
    path: Path | str, cap_bytes: int, *, folder: int | None = None, follow: bool = True
) -> Iterator[BufferedReader]:
    """A plain file of at most `cap_bytes`, open for reading.

    Args:
        folder: descriptor of the folder that a relative `path` starts from.
        follow: False refuses a symbolic link as the last part of `path`.

    Raises:
        NotPlainError: no plain file.
        TooLargeError: more than `cap_bytes`.
        OSError: missing, not allowed, a loop of links, a name with a NUL.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "the name holds a NUL")
    # Looked at first, because opening a device can already do something (rewind a tape, arm a watchdog).
    _must_be_plain(os.stat(path, dir_fd=folder, follow_symlinks=follow), path)
    descriptor = os.open(path, _FLAGS | (0 if follow else os.O_NOFOLLOW), dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _must_be_plain(found, path)
        if found.st_size > cap_bytes:
            raise TooLargeError(errno.EFBIG, f"{found.st_size} bytes; the limit is {cap_bytes}", str(path))
        yield file


def read_capped(file: BufferedReader, cap_bytes: int) -> bytes:
    """All bytes of a file. Raises TooLargeError where it has grown beyond `cap_bytes` since it was opened."""
    content = file.read(cap_bytes + 1)
    if len(content) > cap_bytes:
        raise TooLargeError(errno.EFBIG, f"more than {cap_bytes} bytes")
    return content


def size_of(file: BufferedReader) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def _must_be_plain(found: os.stat_result, path: Path | str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise NotPlainError(errno.ELOOP, "it is a symbolic link", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise NotPlainError(errno.EINVAL, "it is no plain file", str(path))
