"""The database crashes and the broker dies, again and again, under real workers; the rollout ends as if they had not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis
from sqlalchemy.exc import OperationalError

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.embedded import EmbeddedServers, use_embedded
from orchestrator.settings import Settings
from tests.faults import ledger, oracle, report, world
from tests.faults.crew import crew, until
from tests.faults.test_worker_kills import judged
from tests.faults.volume import FACTOR, scaled

PACE_S, BATCH, LEASE_S = 0.02, 8, 2.0
FLOWS_AGAIN_WITHIN_S = 15.0


@pytest.fixture
def own_servers(tmp_path: Path) -> Iterator[EmbeddedServers]:
    """A PostgreSQL and a Valkey that nobody else uses."""
    with use_embedded(tmp_path / "own") as running:
        yield running


@pytest.fixture
def own_world(own_servers: EmbeddedServers, tmp_path: Path) -> Iterator[Context]:
    """A context on servers of its own; workers know them by URL."""
    settings = Settings(
        database_url=own_servers.database_url,
        broker_url=own_servers.broker_url,
        data_dir=tmp_path / "data",
        lease_s=LEASE_S,
        heartbeat_s=0.3,
    )
    with open_context(settings) as context:
        yield context


class Servers:
    """Ends the servers of one data folder at once; their keeper starts them again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def crash_database(self) -> None:
        """SIGQUIT to the postmaster: "immediate", as after a power cut; it recovers from its log."""
        pid_file = self._folder / "postgres" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)

    def kill_broker(self) -> None:
        """SIGKILL to the broker."""
        home = (self._folder / "valkey").resolve()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if Path(process.cwd()) == home and "valkey" in process.name():
                    process.kill()


def committed(context: Context, rollout_id: int) -> int | None:
    """Committed batches; None while the database does not answer."""
    try:
        return sum(lease.state == "committed" for lease in ledger.leases(context, rollout_id))
    except OperationalError:
        return None


def answers(url: str) -> bool:
    """Whether the broker does."""
    try:
        with contextlib.closing(redis.Redis.from_url(url, socket_timeout=1)) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def crash_in_turn(
    context: Context, servers: Servers, rollout_id: int, crashes: int
) -> tuple[list[float], list[float]]:
    """Crash the database and kill the broker in turn; seconds from each until a further batch was committed."""
    database_s: list[float] = []
    broker_s: list[float] = []

    def flows_from(count: int) -> bool:
        found = committed(context, rollout_id)
        return found is not None and found > count

    for number in range(2 * crashes):
        before = committed(context, rollout_id)
        assert before is not None
        crash, times = (
            (servers.crash_database, database_s) if number % 2 == 0 else (servers.kill_broker, broker_s)
        )
        began = time.monotonic()
        crash()
        if number % 2:  # that it is back counts as well: nobody may find a dead broker for ever
            until(lambda: answers(context.broker.url), "the broker answers again")
        until(partial(flows_from, before + 2), f"work flows after {crash.__name__}")
        times.append(time.monotonic() - began)
        if ledger.state(context, rollout_id) != "backfilling":
            break
        time.sleep(0.3)
    return database_s, broker_s


def endure(context: Context, folder: Path, crashes: int) -> tuple[list[float], list[float], oracle.Truth]:
    """One rollout by two workers, with both servers restarted so many times and the broker emptied twice."""
    servers = Servers(folder)
    with crew(context, 2, PACE_S) as team:
        row = world.begin(context, batch_size=BATCH, lease_s=LEASE_S)
        until(lambda: (committed(context, row.id) or 0) > 2, "work flows")
        times = crash_in_turn(context, servers, row.id, crashes)
        for _ in range(2):
            with contextlib.closing(redis.Redis.from_url(context.broker.url)) as client:
                client.flushall()
            time.sleep(0.5)
        until(lambda: ledger.state(context, row.id) == "finalizable", "the rollout ends", 240)
        assert team.workers, "the workers did not outlive the servers"
    return *times, judged(context, row.id)


def test_one_crash_of_each_server_is_outlived(own_world: Context, tmp_path: Path) -> None:
    world.build(own_world, tmp_path / "world", 480)
    database_s, broker_s, truth = endure(own_world, tmp_path / "own" / "embedded", 1)
    assert truth.sound, truth
    assert len(database_s) == len(broker_s) == 1


@pytest.mark.faults
@pytest.mark.timeout(900 * max(1, FACTOR))
def test_servers_restart_ten_times_each_in_one_rollout(own_world: Context, tmp_path: Path) -> None:
    wanted = scaled(10)
    world.build(own_world, tmp_path / "world", 160 * wanted)
    database_s, broker_s, truth = endure(own_world, tmp_path / "own" / "embedded", wanted)
    for name, times in (("database", database_s), ("broker", broker_s)):
        report.record(
            report.Figures(
                f"{name} restarts in one rollout → work flows",
                f"{wanted} restarts; ≤ {FLOWS_AGAIN_WITHIN_S:g} s",
                len(times),
                met=truth.sound and len(times) >= wanted and max(times) <= FLOWS_AGAIN_WITHIN_S,
                **report.counted([truth]),
                recovery_s=times,
                limit_s=FLOWS_AGAIN_WITHIN_S,
            )
        )
    assert truth.sound, truth
    assert (len(database_s), len(broker_s)) == (wanted, wanted), "the rollout ended before all restarts"
    assert max(database_s + broker_s) <= FLOWS_AGAIN_WITHIN_S
