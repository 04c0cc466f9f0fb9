"""Statements of the throttles' probes. Each opens a connection of its own, read-only and bounded in time.

A probe on a server in trouble must not take connections out of the worker's pool, nor wait for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import URL, make_url

_STREAMING_REPLICAS = """/* hotrefresh.streaming_replicas */
SELECT state IS NOT NULL, coalesce(extract(epoch FROM replay_lag), 0)::float8,
       (pg_current_wal_flush_lsn() - '0/0')::bigint, (coalesce(replay_lsn, flush_lsn, '0/0') - '0/0')::bigint
FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup'"""


@dataclass(frozen=True)
class StreamingReplica:
    """A replica that a server streams to.

    Attributes:
        visible: this user may see the rest.
        lag_s: what the server last measured; 0 where it has measured nothing, be it that replay stands still.
        written: the server's position in its log, bytes.
        replayed: the replica's, bytes.
    """

    visible: bool
    lag_s: float
    written: int
    replayed: int


class NoScalarError(Exception):
    """A statement did not give exactly one row of one column."""


def streaming_replicas(url: URL | str, timeout_s: float) -> list[StreamingReplica]:
    """The replicas connected to a server.

    Raises:
        psycopg.Error: no answer in time.
    """
    with _read_only(url, timeout_s) as connection:
        rows = connection.execute(_STREAMING_REPLICAS).fetchall()
    return [StreamingReplica(*row) for row in rows]


def read_scalar(url: URL | str, statement: str, timeout_s: float) -> Any:
    """The one value of an operator's own SELECT.

    Raises:
        psycopg.Error: no answer in time, or a statement that fails or writes.
        NoScalarError: not exactly one row of one column.
    """
    with _read_only(url, timeout_s) as connection, connection.cursor() as cursor:
        # Prepared: the protocol then takes one statement only, so none can be hidden behind a semicolon.
        cursor.execute(statement.encode(), prepare=True)
        rows = cursor.fetchmany(2)
    if len(rows) != 1 or len(rows[0]) != 1:
        raise NoScalarError("the statement did not give one row of one column")
    return rows[0][0]


@contextmanager
def _read_only(url: URL | str, timeout_s: float) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One read-only transaction that is never committed, on a connection that ends with it."""
    milliseconds = int(timeout_s * 1000)
    connection = psycopg.connect(
        make_url(url).set(drivername="postgresql").render_as_string(hide_password=False),
        connect_timeout=max(2, round(timeout_s)),  # libpq knows nothing shorter than 2 s
        tcp_user_timeout=milliseconds,
        application_name="hotrefresh throttle",
        options="-c search_path=hotrefresh,reporting,public -c timezone=UTC "
        f"-c statement_timeout={milliseconds} -c default_transaction_read_only=on",
    )
    try:
        yield connection
    finally:
        connection.close()
