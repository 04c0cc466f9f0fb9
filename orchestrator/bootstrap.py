"""The composition root: the only module that knows which parts there are. Everything heavy is imported when used."""

from __future__ import annotations

from typing import Any

from orchestrator.context import Context
from orchestrator.settings import Settings, load_settings


def open_context(settings: Settings | None = None, *, migrate: bool = True, **flags: Any) -> Context:
    """Connect to the configured servers, or start the embedded ones, and bring the schema to this release's head.

    Args:
        migrate: False leaves the schema alone (for `db current`, `db downgrade`). An external database is
            upgraded only when it is empty: changing somebody's schema is `hotrefresh db upgrade`'s business.

    Raises:
        UnreachableError: a server does not answer, or an embedded one cannot start.
        UsageError: configuration that does not fit.
    """
    from orchestrator import failpoints
    from orchestrator.broker import Broker
    from orchestrator.ledger import database

    failpoints.arm_from_environment()
    settings = settings or load_settings(**flags)
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    database_url, broker_url, closers = settings.database_url, settings.broker_url, []
    embedded = database_url is None or broker_url is None
    if embedded:
        from orchestrator.embedded import use_embedded

        servers = use_embedded(
            settings.data_dir.absolute(), postgres=database_url is None, valkey=broker_url is None
        )
        closers.append(servers.close)
        database_url = database_url or servers.database_url
        broker_url = broker_url or servers.broker_url
    assert database_url is not None
    assert broker_url is not None
    try:
        engine = database.open_engine(database_url)
        database.check(engine)
        if migrate:
            database.ensure_schema(engine, ours=settings.database_url is None)
    except BaseException:
        for close in closers:
            close()
        raise
    return Context(
        settings, engine, Broker(broker_url), embedded=settings.database_url is None, on_close=closers
    )
