"""Files that several processes share: locks, which end with the last process that holds them, and logs."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

POLL_S = 0.01
_LOG_LIMIT_BYTES = 4_000_000


def take(path: Path, *, shared: bool = False, timeout_s: float = 0.0) -> IO[bytes]:
    """Lock a file, making it if need be; the lock is held until the returned file is closed in every process that has it.

    Raises:
        TimeoutError: somebody else still holds it after `timeout_s`.
        OSError: the file cannot be made.
    """
    file = path.open("ab")
    deadline = time.monotonic() + timeout_s
    try:
        while not try_lock(file, shared=shared):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{path} is locked by another process")
            time.sleep(POLL_S)
    except BaseException:
        file.close()
        raise
    return file


def try_lock(file: IO[bytes], *, shared: bool = False) -> bool:
    """Lock an open file if that needs no waiting; says whether it is locked now."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(file: IO[bytes]) -> None:
    """Unlock an open file and keep it open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def open_log(path: Path) -> IO[bytes]:
    """A log to append to, readable by us alone. One that has grown large becomes `<name>.previous.log` first."""
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.rename(path.with_suffix(".previous.log"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of this file."""
    try:
        take(path).close()
    except TimeoutError:
        return True
    return False
