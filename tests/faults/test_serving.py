"""Searches and dashboards while a gallery is re-embedded: no error, and hardly slower than when nothing happens."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator.context import Context
from orchestrator.ledger.queries.reporting import VIEWS, read_view
from orchestrator.service import background
from tests.faults import ledger, report, world
from tests.faults.crew import crew, until
from tests.faults.test_worker_kills import judged
from tests.faults.volume import FACTOR, scaled

ROOT = Path(__file__).parents[2]
ITEMS, BATCH, LEASE_S = 4000, 16, 2.0
# A worker that waits for its (pretended) GPU and leaves the cores to searches: those are what is measured.
PACE_S = 0.004
SLOWER_AT_MOST = 1.5
DASHBOARDS_PER_S = 50
STATEMENT_TIMEOUT_S = 2.0


@pytest.fixture
def gallery(context: Context, tmp_path: Path) -> Context:
    """The world with a gallery that is worked on for a quarter of a minute."""
    world.build(context, tmp_path / "world", ITEMS)
    return context


@contextmanager
def served(context: Context, log: Path) -> Iterator[Callable[[], None]]:
    """`hotrefresh serve` as a process of its own, and a search of the world's gallery over a connection that stays open."""
    command = [sys.executable, "-m", "cli.main", "serve", "--port", "0", "-o", "json"]
    with log.open("w") as errors:
        server = subprocess.Popen(
            command,
            env=background.worker_environment(context.settings),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert server.stdout is not None
        address = urlsplit(json.loads(server.stdout.readline())["url"])
        connection = HTTPConnection(address.hostname or "", address.port)

        def asked(method: str, path: str, body: str | None = None) -> HTTPResponse:
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            return answer

        def search() -> None:
            assert asked("POST", f"/search/{world.GALLERY}", '{"text": "query 7", "k": 5}').status == 200

        until(lambda: asked("GET", "/readyz").status == 200, "the server is ready")
        yield search
        connection.close()
    finally:
        server.terminate()
        server.wait()


def open_loop(
    act: Callable[[], None], per_s: float, goes_on: Callable[[float], bool]
) -> tuple[list[float], int]:
    """Act at fixed moments, whatever the act before took; seconds from each moment to its end, and how many failed.

    A slow act delays those behind it, and their waiting counts: nothing is left out of the figures.
    """
    took, failed, number = [], 0, 0
    started = time.monotonic()
    while goes_on(time.monotonic() - started):
        due = started + number / per_s
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            act()
        except Exception:  # noqa: BLE001 — any is one too many
            failed += 1
        took.append(time.monotonic() - due)
        number += 1
    return took, failed


def end_of_backfill(context: Context, rollout_id: int, over: threading.Event) -> None:
    """Set `over` when nothing is left to embed. The loop that is measured must not ask the ledger itself."""
    try:
        until(
            lambda: ledger.state(context, rollout_id) not in ("deployed", "backfilling"), "the backfill ends"
        )
    finally:
        over.set()


def capacity(search: Callable[[], None], seconds: float) -> float:
    """Searches a second, one after the other."""
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        search()
        count += 1
    return count / (time.monotonic() - started)


@pytest.mark.faults
@pytest.mark.timeout(600 * max(1, FACTOR))
def test_searches_while_backfilling_do_not_fail_and_are_hardly_slower(
    gallery: Context, tmp_path: Path
) -> None:
    idle_s = scaled(10)
    with served(gallery, tmp_path / "serve.log") as search, crew(gallery, 1, PACE_S):
        half = capacity(search, 3.0) / 2
        idle, failed_idle = open_loop(search, half, lambda elapsed: elapsed < idle_s)
        row = world.begin(gallery, batch_size=BATCH, lease_s=LEASE_S)
        over = threading.Event()
        watch = threading.Thread(target=end_of_backfill, args=(gallery, row.id, over))
        watch.start()
        busy, failed = open_loop(search, half, lambda _: not over.is_set())
        watch.join()
    p99_idle, p99_busy = report.quantile(idle, 0.99), report.quantile(busy, 0.99)
    truth = judged(gallery, row.id)
    met = failed == failed_idle == 0 and p99_busy <= SLOWER_AT_MOST * p99_idle and truth.sound
    report.record(
        report.Figures(
            "searches while backfilling, open loop at half of idle capacity",
            f"0 errors, p99 ≤ {SLOWER_AT_MOST} × idle",
            len(busy),
            met=met,
            **report.counted([truth]),
            detail={
                "errors": failed,
                "per_s": round(half, 1),
                "p99_idle_ms": round(1e3 * p99_idle, 2),
                "p99_busy_ms": round(1e3 * p99_busy, 2),
            },
        )
    )
    assert failed == failed_idle == 0
    assert truth.sound, truth


def watch_dashboards(context: Context, over: threading.Event) -> tuple[list[float], list[str]]:
    """Every view in turn, fifty a second, as the role of dashboards reads them; seconds each took, and the faults."""
    took, faults = [], []
    names = list(VIEWS)
    with context.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SET ROLE hotrefresh_dashboard")
        connection.exec_driver_sql(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S:.0f}s'")
        number = 0
        while not over.is_set():
            started = time.monotonic()
            try:
                read_view(connection, names[number % len(names)], limit=100)
            except Exception as error:  # noqa: BLE001 — any is one too many
                faults.append(f"{names[number % len(names)]}: {error}")
            took.append(time.monotonic() - started)
            number += 1
            over.wait(max(0.0, 1 / DASHBOARDS_PER_S - took[-1]))
        connection.exec_driver_sql("RESET ROLE")
    return took, faults


def test_dashboards_read_fifty_times_a_second_disturb_nothing(context: Context, tmp_path: Path) -> None:
    world.build(context, tmp_path / "world", 320)
    over = threading.Event()
    outcome: list[tuple[list[float], list[str]]] = []
    reader = threading.Thread(target=lambda: outcome.append(watch_dashboards(context, over)))
    with crew(context, 1, 0.01):
        reader.start()
        row = world.begin(context, batch_size=4, lease_s=LEASE_S)
        until(lambda: ledger.state(context, row.id) == "finalizable", "the rollout ends")
    over.set()
    reader.join(30)
    [(took, faults)] = outcome
    assert not faults, faults[:3]
    assert len(took) > len(VIEWS)
    truth = judged(context, row.id)
    assert truth.sound, truth
    report.record(
        report.Figures(
            f"dashboard views read {DASHBOARDS_PER_S} times a second while backfilling",
            "no error",
            len(took),
            met=not faults,
            **report.counted([truth]),
            detail={"slowest_ms": round(1e3 * max(took), 1)},
        )
    )
