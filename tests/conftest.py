"""Real servers for tests: one embedded PostgreSQL and Valkey a session, one fresh database a test."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from orchestrator.settings import Settings

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and so would every command they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never see the configuration of whoever runs them."""
    for name in list(os.environ):
        if name.startswith("HOTREFRESH_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Embedded servers in a temporary folder, gone after the run.

    Without fsync: it guards against a machine that loses its power, which no test does, and a killed server loses nothing.
    A database of one's own is there in 0.04 s then, not in 0.2 s.
    """
    from orchestrator.embedded import use_embedded

    with use_embedded(tmp_path_factory.mktemp("servers")) as running:
        _administer(running.database_url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        yield running


def _administer(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def empty_database(servers) -> Iterator[str]:
    """The URL of a new, empty database."""
    name = f"empty_{next(_numbers)}"
    _administer(servers.database_url, f"CREATE DATABASE {name}")
    yield servers.database_url.rsplit("/", 1)[0] + f"/{name}"
    _administer(servers.database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_template(servers) -> str:
    """The name of a migrated database, to be copied."""
    from orchestrator.ledger.database import open_engine, upgrade

    _administer(servers.database_url, "CREATE DATABASE migrated_template")
    engine = open_engine(servers.database_url.rsplit("/", 1)[0] + "/migrated_template", pooled=False)
    upgrade(engine)
    engine.dispose()
    return "migrated_template"


@pytest.fixture
def settings(servers, migrated_template: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings for a ledger of one's own on the session's servers."""
    name = f"ledger_{next(_numbers)}"
    _administer(
        servers.database_url, f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY = FILE_COPY"
    )
    base, broker = servers.database_url.rsplit("/", 1)[0], servers.broker_url.rsplit("/", 1)[0]
    yield Settings(
        database_url=f"{base}/{name}",
        broker_url=f"{broker}/{next(_numbers) % 16}",
        data_dir=tmp_path / "data",
        lease_s=2.0,
        heartbeat_s=0.3,
        batch_size=16,
    )
    _administer(servers.database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def context(settings: Settings) -> Iterator[object]:
    """An open context on a ledger of one's own."""
    from orchestrator.bootstrap import open_context

    with open_context(settings) as opened:
        yield opened
