"""A replica in a process of its own, searched over a socket: what the load proof looks at from outside.

`Searched` is the test's side, `python -m tests.faults.searched` the other. A fault may be planted in that process only:
the proof must then see it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.context import Context
from orchestrator.ledger.rows import ItemRow
from orchestrator.service import background
from orchestrator.serving.answers import Answer
from orchestrator.serving.matrix import read_batch
from orchestrator.serving.replica import Replica
from orchestrator.settings import load_settings
from tests.faults.volume import ROOT

# How long a planted fault leaves the mixture wrong, so that searches fall into it on a busy machine too.
APART_S = 0.02


@dataclass(frozen=True)
class Seen:
    """One answer to one query: rows (k,), scores (k,), stated versions (k,), the query model, the place of the log."""

    query: int
    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int64]
    model: str
    seq: int


class NumberedReplica(Replica):
    """Names items by their rows: what is looked at are vectors, and reading names would take most of the time."""

    def items(self, rows: Sequence[int]) -> dict[int, ItemRow]:
        return {row: ItemRow(row, str(row), f"text:item {row}", None) for row in rows}


class Searched:
    """The test's side. `connect` for each thread that searches."""

    def __init__(
        self, context: Context, folder: Path, gallery: str, backend: str, fault: str | None = None
    ) -> None:
        self._address = str(folder / "searched")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.searched", self._address, gallery, backend, fault or ""],
            env=background.worker_environment(context.settings),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the replica's process ended"

    def connect(self) -> Callable[[Sequence[int], int], list[Seen]]:
        """A search by numbers of queries over a connection of its own."""
        connection: Connection[Any, Any] = Client(self._address)

        def search(queries: Sequence[int], k: int) -> list[Seen]:
            connection.send((list(queries), k))
            found = connection.recv()
            if isinstance(found, str):
                raise AssertionError(found)
            return [Seen(query, *each) for query, each in zip(queries, found, strict=True)]

        return search

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextlib.contextmanager
def searched(
    context: Context, folder: Path, gallery: str, backend: str, fault: str | None = None
) -> Iterator[Searched]:
    """A replica in its process, ended at the end."""
    opened = Searched(context, folder, gallery, backend, fault)
    try:
        yield opened
    finally:
        opened.close()


def _no_lock(replica: Replica) -> None:
    """Writing does not wait for readers, nor they for it."""
    lock = replica._lock
    lock.write = contextlib.nullcontext  # type: ignore[method-assign]
    index = replica._served.index
    replace = index.replace

    def slowly(rows: Any, vectors: Any) -> None:
        half = len(rows) // 2
        replace(rows[:half], vectors[:half])
        time.sleep(APART_S)
        replace(rows[half:], vectors[half:])

    index.replace = slowly  # type: ignore[method-assign]


def _version_first(self: Replica, connection: Any, rollout: Any, entry: Any) -> None:
    batch = read_batch(connection, rollout, entry)
    with self._lock.write():
        self._served.version[batch.rows] = rollout.id
    time.sleep(APART_S)
    with self._lock.write():
        self._served.index.replace(batch.rows, batch.vectors)
        self.seq = entry.seq


def _sequence_late(self: Replica, connection: Any, rollout: Any, entry: Any) -> None:
    batch = read_batch(connection, rollout, entry)
    with self._lock.write():
        self._served.index.replace(batch.rows, batch.vectors)
        self._served.version[batch.rows] = rollout.id
    time.sleep(APART_S)
    self.seq = entry.seq


def _in_slices(self: Replica, connection: Any, rollout: Any, entry: Any) -> None:
    batch = read_batch(connection, rollout, entry)
    for half in np.array_split(np.arange(len(batch.rows)), 2):
        with self._lock.write():
            self._served.index.replace(batch.rows[half], batch.vectors[half])
            self._served.version[batch.rows[half]] = rollout.id
        time.sleep(APART_S)
    self.seq = entry.seq


def _half_rows(self: Replica, connection: Any, rollout: Any, entry: Any) -> None:
    """Rows are written in two halves: what lies between is a vector that never was."""
    batch = read_batch(connection, rollout, entry)
    old = self._served.index.vectors()[batch.rows]
    middle = old.shape[1] // 2
    for vectors in (np.hstack([batch.vectors[:, :middle], old[:, middle:]]), batch.vectors):
        with self._lock.write():
            self._served.index.replace(batch.rows, vectors)
            self._served.version[batch.rows] = rollout.id
            self.seq = entry.seq
        time.sleep(APART_S)


def _applying(apply: Callable[..., None]) -> Callable[[Replica], None]:
    def plant(replica: Replica) -> None:
        replica._apply_batch = MethodType(apply, replica)  # type: ignore[method-assign]

    return plant


FAULTS: dict[str, Callable[[Replica], None]] = {
    "no lock around the batch": _no_lock,
    "versions before the vectors": _applying(_version_first),
    "the place in the log after the batch": _applying(_sequence_late),
    "a batch in two holds of the lock": _applying(_in_slices),
    "half of each row": _applying(_half_rows),
}


def _plain(answer: Answer) -> tuple[Any, ...]:
    return (
        np.array([hit.row for hit in answer.hits], np.int64),
        np.array([hit.score for hit in answer.hits], np.float32),
        np.array([hit.rollout_id for hit in answer.hits], np.int64),
        answer.model,
        answer.seq,
    )


def _serve(replica: Replica, connection: Connection[Any, Any]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            queries, k = connection.recv()
            try:
                answers = replica.search([f"query {number}" for number in queries], k)
                if replica.error is not None:
                    raise replica.error
                connection.send([_plain(answer) for answer in answers])
            except Exception as error:  # noqa: BLE001 - the test counts it
                connection.send(f"{type(error).__name__}: {error}")


def main(address: str, gallery_name: str, backend: str, fault: str) -> None:
    """Answer searches until the input ends."""
    from orchestrator.bootstrap import open_context
    from orchestrator.ledger.database import transaction
    from orchestrator.service.names import find_gallery

    def accept(listener: Listener) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=_serve, args=(replica, listener.accept()), daemon=True).start()

    with open_context(load_settings(), migrate=False) as context:
        with transaction(context.engine) as connection:
            gallery = find_gallery(connection, gallery_name)
        with NumberedReplica(context, gallery, backend) as replica, Listener(address, "AF_UNIX") as listener:
            if fault:
                FAULTS[fault](replica)
            replica.follow(interval_s=0.01)
            threading.Thread(target=accept, args=(listener,), daemon=True).start()
            print(json.dumps({"seq": replica.seq}), flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:5])
