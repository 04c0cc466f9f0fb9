"""What an error of an encoder means: try again, give the item up, use less memory, or end the process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import torch

from models.errors import ArtifactError, ItemError, UsageError
from orchestrator.errors import UnreachableError
from workers.log import log

STICKY_EXIT = 70
"""Exit code of a process whose device is lost to it (EX_SOFTWARE of sysexits.h): the supervisor starts another."""

# After one of these every further CUDA call of the process fails, or may return garbage: only a new process helps.
_STICKY = (
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "invalid program counter",
    "invalid address space",
    "hardware stack error",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc",
    "uncorrectable nvlink",
    "unable to determine the device handle",
    "no cuda-capable device",
    "context is destroyed",
    "device is lost",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
)
_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
_PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EINTR", "EIO", "ETIMEDOUT", "ESTALE", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE",
        "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "EMFILE", "ENFILE", "ENOSPC", "EDQUOT", "EBUSY", "ENOMEM",
    )
}  # fmt: skip
_TRANSIENT = (UnreachableError, ConnectionError, TimeoutError, InterruptedError, BlockingIOError)
# The same input gives the same error: a second attempt is a waste.
_PERMANENT = (
    ItemError, ArtifactError, UsageError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    AssertionError, NotImplementedError, RecursionError,
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
)  # fmt: skip


def sticky(error: BaseException) -> bool:
    """Whether the device is lost to this process, by the words of CUDA, cuBLAS and cuDNN. Only torch's errors count."""
    return any(isinstance(each, RuntimeError) and _says(each, _STICKY) for each in _chain(error))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, on the device or on the host; also where a user's encoder wrapped the error."""
    return any(
        isinstance(each, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(each, RuntimeError) and _says(each, _NO_MEMORY))
        for each in _chain(error)
    )


def transient(error: BaseException) -> bool:
    """Whether the same work may succeed later, unchanged: a connection, a disk, a lock, memory that others held."""
    if sticky(error):
        return False
    return out_of_memory(error) or any(
        isinstance(each, _TRANSIENT) or (isinstance(each, OSError) and each.errno in _PASSING)
        for each in _chain(error)
    )


def permanent(error: BaseException) -> bool:
    """Whether the same work would fail again. Errors on neither list are tried again, a limited number of times."""
    if sticky(error) or transient(error):
        return False
    return any(isinstance(each, _PERMANENT) for each in _chain(error))


def end_if_sticky(error: BaseException) -> None:
    """End the process at once, with exit code 70 and one log line, where the device is lost to it; else return.

    Nothing is cleaned up: closing streams, buffers and connections would call CUDA again and may hang. What was leased
    runs out in the ledger, and another process does it.
    """
    if not sticky(error):
        return
    try:
        log(
            "device.lost",
            level="error",
            pid=os.getpid(),
            exit_code=STICKY_EXIT,
            message=f"{type(error).__name__}: {str(error)[:500]}",
        )
    finally:  # also where the log's disk is full
        os._exit(STICKY_EXIT)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from; what it merely interrupted says nothing about it."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)
