"""Objects below one URL, through fsspec: put, get, list, remove; every fault is one of the two errors callers know.

Credentials come from the environment alone, where the store's own library looks for them (AWS_*, for servers that
speak S3 also AWS_ENDPOINT_URL). Nothing is cached: what another process put is seen at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]
from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]
from fsspec.registry import known_implementations  # type: ignore[import-untyped]

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.store.base import store_full, translated

T = TypeVar("T")

# A dead store shows after at most ATTEMPTS × the longer of the two; one that takes bytes and never answers, or answers
# by drops, after DEADLINE_S and the time the bytes need at the slowest rate that we still call alive.
CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 6
ATTEMPTS = 2
DEADLINE_S = 15.0
SLOWEST_BYTES_PER_S = 2**20

FULL_CODES = frozenset(
    {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "507"}
)
DENIED_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"}
)


class Objects:
    """The objects whose names start with one URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._connect()

    def _connect(self) -> None:
        self._pid = os.getpid()
        self._filesystem = _filesystem(self._scheme)
        self._prefix = str(self._filesystem._strip_protocol(self.url)).rstrip("/")

    def put(self, name: str, data: memoryview) -> None:
        """Put an object: the whole of it appears, or nothing."""
        size = len(data)
        self._ask("write", name, lambda fs, path, **limit: fs.pipe_file(path, bytes(data), **limit), size)

    def get(self, name: str, size: int) -> bytes | None:
        """An object's bytes, None where there is no such object.

        Args:
            size: how many bytes to expect; a larger object may take longer to come.
        """
        try:
            return self._ask("read", name, lambda fs, path, **limit: bytes(fs.cat_file(path, **limit)), size)
        except _MissingError:
            return None

    def names(self, name: str = "") -> list[str]:
        """The next part of the names below `name`, sorted."""

        def listed(fs: Any, path: str, **limit: Any) -> list[str]:
            return sorted({str(found).rstrip("/").rpartition("/")[2] for found in fs.ls(path, detail=False)})

        try:
            return self._ask("list", name, listed)
        except _MissingError:
            return []

    def remove(self, name: str) -> None:
        """Remove an object, or all below `name`; what is gone already is fine."""
        try:
            self._ask("remove", name, lambda fs, path, **limit: fs.rm(path, recursive=True))
        except _MissingError:
            return

    def _ask(self, doing: str, name: str, ask: Callable[..., T], size: int = 0) -> T:
        """Call the store; whatever it raises becomes an UnreachableError, or _MissingError."""
        if self._pid != os.getpid():  # connections and threads do not cross a fork
            self._connect()
        where = "/".join(filter(None, (self._prefix, name)))
        limit = {}
        if isinstance(self._filesystem, AsyncFileSystem):
            limit["timeout"] = DEADLINE_S + size / SLOWEST_BYTES_PER_S
        try:
            self._filesystem.invalidate_cache()
            return ask(self._filesystem, where, **limit)
        except Exception as error:
            raise _error_of(error, doing, "/".join(filter(None, (self.url, name)))) from error


class _MissingError(Exception):
    """There is no such object, in a bucket that is there."""


def _error_of(error: Exception, doing: str, url: str) -> Exception:
    codes = _codes(error)
    if codes & FULL_CODES:
        return store_full(url)
    if isinstance(error, FileNotFoundError):
        if "NoSuchBucket" not in codes:
            return _MissingError()
        return UnreachableError(
            f"cannot {doing} {url}: there is no such bucket; make it, or correct the store's URL."
        )
    if codes & DENIED_CODES or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return UnreachableError(
            f"cannot {doing} {url}: {_reason(error)}; the store refuses us: set its credentials in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY for s3://), or let them read, write, list and delete there."
        )
    return translated(error, doing, url)


def _codes(error: BaseException) -> set[str]:
    """What a server that speaks S3 called the fault; its own error is the cause of the one we see."""
    codes = set()
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            codes.add(str(response.get("Error", {}).get("Code")))
            codes.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode")))
        seen = seen.__cause__
    return codes


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _filesystem(scheme: str) -> Any:
    """An fsspec file system.

    Raises:
        UsageError: its library is not installed, or there is no such scheme.
    """
    try:
        made = fsspec.filesystem(scheme, use_listings_cache=False, **OPTIONS.get(scheme, dict)())
    except ImportError as error:
        raise UsageError(f"stores at {scheme}:// need another package. Run: {_install(scheme)}") from error
    except OSError as error:
        raise translated(error, "open", f"{scheme}://") from error
    except ValueError as error:
        raise UsageError(
            f"there is no kind of store for {scheme}://; use a folder, s3://bucket/prefix or another URL of fsspec."
        ) from error
    if hasattr(made, "retries"):
        made.retries = 1  # s3fs would repeat what botocore repeated already: ATTEMPTS × 5
    return made


def _install(scheme: str) -> str:
    if scheme in ("s3", "s3a"):
        return "pip install 'hotrefresh[s3]'"
    module = str(known_implementations[scheme]["class"]).partition(".")[0]
    return f"pip install {module}"


def _s3_options() -> dict[str, Any]:
    return {
        # said here though botocore reads it too: fsspec keeps one client for the same options
        "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "max_concurrency": 1,  # otherwise each get asks for the size first
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        },
    }


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {"s3": _s3_options, "s3a": _s3_options}
