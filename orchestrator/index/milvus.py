"""Milvus: a collection of a cluster, or of milvus-lite in this process with its files in the data folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.index import IndexOptions, Mask, Rows, Vectors
from orchestrator.index.rows import last_of_each, ordered
from orchestrator.settings import masked

_MISSING = "{} is not installed: pip install 'hotrefresh[milvus]'."
try:
    from pymilvus import DataType, MilvusClient
    from pymilvus.exceptions import MilvusException
except ImportError as missing:
    raise UnreachableError(_MISSING.format("pymilvus")) from missing

# Every failed call is an error of ours already, with what to do about it.
for _name in ("pymilvus", "milvus_lite"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

PREFIX = "hotrefresh_vectors_"
# Milvus answers with no more rows than this.
MOST = 16_384
# Bytes of vectors in one message; a cluster takes 64 MiB.
_MESSAGE_BYTES = 8 * 2**20
_QUERIES = 1024
# milvus-lite looks through rows that it has not written out one by one: 20,000 of them make a search eight times slower.
_UNFLUSHED = 8192
_TIMEOUT_S = 60.0


class Milvus:
    """A collection (row, vec) with a FLAT index: every search compares with every vector, at consistency Strong.

    Rows of zeros are not stored. A filter is a list of rows, the allowed ones or the others, whichever is shorter: its
    cost grows with that list. Among equal scores at the edge of the k best, Milvus chooses.

    The collection is dropped by `close`, and milvus-lite's files are removed. What a dead process of this host left is
    removed when the next index opens.
    """

    exact = True

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        options = options or IndexOptions()
        self.dim = vectors.shape[1]
        self._width = max(2, self.dim)  # Milvus takes no vectors of one number
        self._held = np.zeros(0, np.bool_)
        self._unflushed = 0
        self._closed = False
        self.lost = False
        """Whether somebody dropped the collection."""
        self._name = f"{PREFIX}{_host()}_{_started(os.getpid())}_{secrets.token_hex(4)}"
        self._files = _Files(options.folder) if options.url is None else None
        self._place = str(self._files.path) if self._files else _checked(options.url)
        self._client: Any = None
        try:
            with self._faults():
                self._client = MilvusClient(uri=self._place, token=options.token or "", timeout=_TIMEOUT_S)
                if self._files is None:
                    _drop_leftovers(self._client)
                self._create()
                self.grow(len(vectors))
                self.replace(np.arange(len(vectors)), vectors)
                self._client.flush(self._name)
                self._unflushed = 0
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("vec", DataType.FLOAT_VECTOR, dim=self._width)
        index = self._client.prepare_index_params()
        index.add_index("vec", index_type="FLAT", metric_type="IP", params={})
        self._client.create_collection(
            self._name, schema=schema, index_params=index, consistency_level="Strong"
        )

    @property
    def _rows_a_message(self) -> int:
        return int(min(MOST, max(1, _MESSAGE_BYTES // (4 * self._width + 16))))

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        each, last = last_of_each(rows, vectors)
        if not len(each):
            return
        if each[0] < 0 or each[-1] >= len(self._held):
            raise IndexError(f"row {each[0] if each[0] < 0 else each[-1]} of {len(self._held)}")
        there = last.any(axis=1)
        # Only what is stored can be deleted, and most rows of a new collection are not.
        gone = each[~there & self._held[each]]
        step = self._rows_a_message
        with self._faults():
            for at in range(0, len(gone), step):
                self._client.delete(self._name, ids=gone[at : at + step].tolist())
            stored, values = each[there], self._wide(last[there])
            for at in range(0, len(stored), step):
                self._client.upsert(
                    self._name,
                    [
                        {"row": row, "vec": vector}
                        for row, vector in zip(
                            stored[at : at + step].tolist(), values[at : at + step], strict=True
                        )
                    ],
                )
            self._unflushed += len(each)
            if self._files is not None and self._unflushed >= _UNFLUSHED:  # a cluster does so by itself
                self._client.flush(self._name)
                self._unflushed = 0
        self._held[each] = there

    def _wide(self, vectors: Vectors) -> Vectors:
        return np.pad(vectors, ((0, 0), (0, self._width - self.dim)))

    def grow(self, n: int) -> None:
        if n > len(self._held):
            self._held = np.append(self._held, np.zeros(n - len(self._held), np.bool_))

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        there = int(np.count_nonzero(self._held if allowed is None else self._held & allowed))
        wanted = min(k, there, MOST)
        scores = np.full((len(queries), wanted), -np.inf, np.float32)
        rows = np.full((len(queries), wanted), -1, np.int64)
        if wanted:
            asked = self._wide(np.ascontiguousarray(queries, np.float32))
            # As many queries as keep the answers within a message.
            step = max(1, min(_QUERIES, _MESSAGE_BYTES // (16 * wanted)))
            for at in range(0, len(queries), step):
                with self._faults():
                    found = self._client.search(
                        self._name,
                        list(asked[at : at + step]),
                        filter="" if allowed is None else self._filter(allowed),
                        limit=wanted,
                        output_fields=["row"],
                        search_params={"metric_type": "IP"},
                        consistency_level="Strong",
                    )
                for place, hits in enumerate(found, at):
                    rows[place, : len(hits)] = [hit["row"] for hit in hits]
                    scores[place, : len(hits)] = [hit["distance"] for hit in hits]
        return ordered(scores, rows, k)

    def _filter(self, allowed: Mask) -> str:
        inside, outside = np.flatnonzero(self._held & allowed), np.flatnonzero(self._held & ~allowed)
        if len(inside) <= len(outside):
            return f"row in {inside.tolist()}"
        return f"row not in {outside.tolist()}" if len(outside) else ""

    def vectors(self) -> Vectors:
        found = np.zeros((len(self._held), self.dim), np.float32)
        step = self._rows_a_message
        for at in range(0, len(found), step):
            with self._faults():
                part = self._client.query(
                    self._name,
                    filter=f"row >= {at} and row < {at + step}",
                    output_fields=["row", "vec"],
                    limit=step,
                    consistency_level="Strong",
                )
            if part:
                values = np.array([each["vec"] for each in part], np.float32)
                found[[each["row"] for each in part]] = values[:, : self.dim]
        return found

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Milvus's errors as ours: what, where, and no token."""
        try:
            yield
        except MilvusException as error:
            with contextlib.suppress(MilvusException, AttributeError):
                self.lost = not self._client.has_collection(self._name)
            reason = (str(error.message).strip().splitlines() or [type(error).__name__])[0]
            raise UnreachableError(
                f"the index at {masked(self._place)} cannot be used: {masked(reason)}. Start Milvus there, or correct "
                "HOTREFRESH_INDEX_URL and HOTREFRESH_INDEX_TOKEN."
            ) from error

    def read(self, rows: Rows) -> None:
        """A server has them."""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._client is not None:
            with contextlib.suppress(MilvusException):  # a leftover goes when the next index opens
                self._client.drop_collection(self._name)
            self._client.close()
        if self._files is not None:
            self._files.remove()


class _Files:
    """A milvus-lite folder of this index's own, beside a lock file that says that its process lives."""

    def __init__(self, folder: Path) -> None:
        if find_spec("milvus_lite") is None:
            raise UnreachableError(_MISSING.format("milvus-lite"))
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("milvus-*.lock"):
            with contextlib.suppress(OSError), leftover.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover.with_suffix(".db"), ignore_errors=True)
                leftover.unlink()
        self._lock_file, self._lock = _locked(folder)
        self.path = self._lock_file.with_suffix(".db")

    def remove(self) -> None:
        """Stop milvus-lite on it, and remove it."""
        from milvus_lite import server_manager_instance

        server_manager_instance.release_server(str(self.path))
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_file.unlink(missing_ok=True)
        self._lock.close()


def _locked(folder: Path) -> tuple[Path, IO[str]]:
    """A new lock file, held. Somebody who looks for leftovers may take a file that is not held yet: then another one."""
    while True:
        path = folder / f"milvus-{secrets.token_hex(8)}.lock"
        file = path.open("a")
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return path, file
        file.close()


def _checked(url: str | None) -> str:
    if url is None or not url.startswith(("http://", "https://")):
        raise UsageError(
            f"index_url {masked(url)!r} is no Milvus server; write http://host:19530, or leave it out for milvus-lite."
        )
    return url


def _host() -> str:
    """This host, as it can stand in a collection's name."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _started(pid: int) -> str | None:
    """A process by its number and its start, which nobody has again: `PID_MILLISECONDS`; None where there is none."""
    try:
        return f"{pid}_{round(psutil.Process(pid).create_time() * 1000)}"
    except psutil.Error:
        return None


def _drop_leftovers(client: Any) -> None:
    """Drop collections whose process was on this host and is dead: its name says which. Other hosts' are theirs to drop."""
    for name in client.list_collections():
        named = re.fullmatch(rf"{PREFIX}{_host()}_((\d+)_\d+)_\w+", name)
        if named is not None and _started(int(named[2])) != named[1]:
            client.drop_collection(name)
