"""Row 10: searches of a replica while another process commits 10,000 items a second, through ledger and extents."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.refreshed import BATCH, NEW, RATE_PER_S, Writer, begin, load, register, writer
from bench.result import Row, median
from bench.scratch import another_context, scratch_context
from bench.serving_windows import Windows, in_windows, rows_of
from orchestrator.api.replicas import ServedReplica
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.rows import GalleryRow
from orchestrator.service import background
from orchestrator.settings import Settings

N, DIM, K = 262_144, 64, 10
SECONDS, HTTP_SECONDS = 3.0, 1.8


class Refresh:
    """The writer's process, and whoever has to have applied what it committed. Counts processor time meanwhile."""

    def __init__(
        self, context: Context, gallery: GalleryRow, written: Writer, applied: Callable[[], int]
    ) -> None:
        self._context = context
        self._gallery = gallery
        self._writer = written
        self._applied = applied
        self.writer_shares: list[float] = []

    def go(self, seconds: float) -> None:
        self._writer.go(round(seconds * RATE_PER_S / BATCH))

    def wait(self) -> float:
        done = self._writer.wait()
        with transaction(self._context.engine) as connection:
            last = log_queries.last_seq(connection, self._gallery.id)
        while self._applied() < last:
            time.sleep(0.01)
        self.writer_shares.append(done["processor_s"] / done["seconds"])
        # From the first batch's moment to the next one that would have come, as an open loop counts.
        return float(done["items"] / max(done["seconds"], done["items"] / RATE_PER_S))


def measure(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """In this process, then through the API; one rollout for both."""
    n = 65_536 if quick else N
    seconds, http_seconds = (0.8, 0.8) if quick else (SECONDS, HTTP_SECONDS)
    with scratch_context(settings) as context:
        register(context, DIM)
        gallery = load(context, n, DIM)
        with another_context(context) as serving, ServedReplica(serving, gallery) as replica:
            replica.follow()
            rollout = begin(context, gallery)
            while replica.model.name != NEW:
                time.sleep(0.01)
            with writer(context, rollout) as written:
                refresh = Refresh(context, gallery, written, lambda: replica.seq)
                clock = _clock(replica)

                def search(number: int) -> None:
                    replica.search([f"query {number * 7919 % n}"], K)

                used = clock()
                windows = in_windows(search, refresh, repeats, seconds)
                used = (clock() - used) / (repeats * seconds)
                assert replica.error is None, replica.error
                replica.close()
                with _served(context) as (ask, sequence):
                    over_http = Refresh(context, gallery, written, sequence)
                    http = in_windows(
                        lambda number: ask(gallery.name, number * 7919 % n), over_http, repeats, http_seconds
                    )
    size = f"N = {n:,}, d = {DIM}, k = {K}, one query at a time"
    return [
        *rows_of(windows, f"replica in this process, {size}", aimed=True),
        _processor(windows, used, median(refresh.writer_shares)),
        *rows_of(http, f"through the API in its process, {size}", aimed=False),
    ]


def _processor(windows: Windows, replica_share: float, writer_share: float) -> Row:
    static, refreshed = windows.of(lambda window: window.processor_s)
    return Row(
        10,
        f"processor time of one search; beside it the replica's thread takes {replica_share:.3f} of a core, the writer's "
        f"process {writer_share:.3f}",
        refreshed * 1e3,
        "ms",
        f"static, {static * 1e3:.3f} ms",
        windows.ratio(lambda window: window.processor_s),
    )


def _clock(replica: ServedReplica) -> Callable[[], float]:
    """Processor seconds of the thread that follows the log."""
    name = f"replica-{replica.gallery.name}"
    [follower] = [thread for thread in threading.enumerate() if thread.name == name]
    assert follower.ident is not None
    identity = time.pthread_getcpuclockid(follower.ident)
    return lambda: time.clock_gettime(identity)


@contextmanager
def _served(context: Context) -> Iterator[tuple[Callable[[str, int], Any], Callable[[], int]]]:
    """`hotrefresh serve` as a process of its own: a search over one connection, and the place of the log it is at."""
    command = [sys.executable, "-m", "cli.main", "serve", "--port", "0", "-o", "json"]
    log = context.settings.data_dir / "serve.log"
    with log.open("w") as errors:
        server = subprocess.Popen(
            command,
            env=background.worker_environment(context.settings),
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert server.stdout is not None
        address = urlsplit(json.loads(server.stdout.readline())["url"])
        connection = HTTPConnection(address.hostname or "", address.port)
        last: dict[str, Any] = {}

        def ask(gallery: str, number: int) -> None:
            connection.request("POST", f"/search/{gallery}", json.dumps({"text": f"query {number}", "k": K}))
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            last.update(gallery=gallery, sequence=json.loads(body)["log_sequence"])

        def sequence() -> int:
            ask(last["gallery"], 1)
            return int(last["sequence"])

        _until_ready(connection)
        yield ask, sequence
        connection.close()
    finally:
        server.terminate()
        server.wait()


def _until_ready(connection: HTTPConnection, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            return
        assert time.monotonic() < deadline, body
        time.sleep(0.1)
