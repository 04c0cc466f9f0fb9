"""The replica_lag probe against a real streaming standby: behind, caught up, standing still, gone, out of sight."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from orchestrator.embedded import postgres
from orchestrator.embedded.account import choose_account
from orchestrator.ledger.database import open_engine
from orchestrator.throttles import ProbeError, Surroundings, parse_throttles


def until(condition, timeout_s=60.0):
    """Wait for something to become true; the time-out is for a hanging test, not a measurement."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def standby_of(url: str, folder: Path):
    """A standby of a server, as the account that PostgreSQL may run as; yields its port, and stops it after."""
    folder.mkdir(parents=True)
    programs = postgres.programs(folder)
    account = choose_account(folder, [programs / "postgres", programs / "pg_basebackup"])
    account.own(folder)
    data = folder / "standby"
    account.run(
        [programs / "pg_basebackup", "-d", url, "-D", data, "-R", "-c", "fast", "--no-sync"], folder=folder
    )
    port = free_port()
    with (folder / "log").open("wb") as output:
        server = account.popen(
            [programs / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
             "-c", "unix_socket_directories=", "-c", "fsync=off"],
            folder=folder,
            output=output,
            death_signal=signal.SIGQUIT,
        )  # fmt: skip
    try:
        yield port
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(timeout=30)


def connect(url: str, **more):
    return psycopg.connect(url, autocommit=True, **more)


def connected(url: str) -> int:
    with connect(url) as connection:
        return connection.execute(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        ).fetchone()[0]


@pytest.fixture
def lag(settings):
    """Reads one probe, which remembers; the table's other keys are given first."""
    probe = parse_throttles([{"kind": "replica_lag", "of": "postgres", "limit": 5}])[0].probe
    engine = open_engine(settings.database_url, pooled=False)
    yield lambda user_engine=engine: probe.read(Surroundings(user_engine, datetime.now(UTC)))
    engine.dispose()


def write(url: str) -> None:
    with connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS public.busy (n int)")
        connection.execute("INSERT INTO public.busy SELECT generate_series(1, 100)")


def test_a_standby_is_measured_behind_caught_up_and_gone(settings, lag, tmp_path):
    url = settings.database_url
    with pytest.raises(ProbeError, match="0 of 1 streaming replicas are connected"):
        lag()
    with standby_of(url, tmp_path / "replica") as port:
        until(lambda: connected(url) == 1)
        until(lambda: lag() < 1)
        replica = make_url(url).set(port=port).render_as_string(hide_password=False)
        with connect(replica) as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
        write(url)
        begun = time.monotonic()
        until(
            lambda: lag() > 1.5
        )  # it grows although the server hears nothing new of a replay that stands still
        assert time.monotonic() - begun < 10
        with connect(replica) as connection:
            connection.execute("SELECT pg_wal_replay_resume()")
        until(lambda: lag() < 1)
        check_that_a_blind_user_is_told(url, lag)
    until(lambda: connected(url) == 0)
    with pytest.raises(ProbeError, match="0 of 1 streaming replicas are connected"):
        lag()


def check_that_a_blind_user_is_told(url, lag):
    """A user without the right sees replicas without their lag: that is no lag of zero."""
    with connect(url) as connection:
        connection.execute("CREATE ROLE blind LOGIN PASSWORD 'blind'")
    engine = open_engine(
        make_url(url).set(username="blind", password="blind").render_as_string(hide_password=False),
        pooled=False,
    )
    try:
        with pytest.raises(ProbeError, match="GRANT pg_read_all_stats"):
            lag(engine)
    finally:
        engine.dispose()
        with connect(url) as connection:
            connection.execute("DROP ROLE blind")
