"""pgvector: the vectors in a table of a PostgreSQL server, scanned in full or through an HNSW graph.

The one file outside the ledger that speaks SQL: it is what this backend's server speaks, and nothing in it is the ledger's.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.index import IndexOptions, Mask, Rows, Vectors
from orchestrator.index.pgvector_binary import (
    COPY_END,
    COPY_HEADER,
    copy_rows,
    from_copy,
    register,
    vector_array,
)
from orchestrator.index.rows import last_of_each, ordered
from orchestrator.settings import masked

SCHEMA = "hotrefresh_index"
# First half of the advisory locks that say "this table's process lives"; the table's number is the other half.
LOCKS = 0x1DE0
# Rows sent to the server together.
_BLOCK = 20_000
# So few allowed rows are fetched by their key and compared, graph or not.
_FEW = 2000
# An HNSW index takes vectors up to this many dimensions, and its search keeps so many candidates at most.
_HNSW_DIM, _EF_MOST = 2000, 1000
# Connections for searches that run side by side.
_SEARCHES = 8


class PgVector:
    """A table (row, vec) of this index's own, by its name and by a lock that its connection holds.

    It is unlogged: its content is a function of the ledger, so it needs no log, goes to no standby, and is loaded anew
    after a crash of the server (`lost`). It is dropped by `close`. What a dead process left is dropped when the next index opens:
    the lock went with its connection.
    """

    exact = True
    _hnsw = False

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        self._options = options or IndexOptions()
        self.dim = vectors.shape[1]
        self._n = len(vectors)
        self._url = _checked(self._options.url)
        if self._hnsw and self.dim > _HNSW_DIM:
            raise UsageError(
                f"an HNSW index of pgvector takes {_HNSW_DIM} dimensions, not {self.dim}; use the backend pgvector."
            )
        self._closed = False
        self.lost = False
        """Whether the connection that held the table's lock is gone, so that the table may be empty or dropped."""
        self._idle: list[psycopg.Connection[Any]] = []
        self._slots = threading.BoundedSemaphore(_SEARCHES)
        self._idle_lock = threading.Lock()
        with _faults(self._url):
            self._owner = psycopg.connect(self._url, autocommit=True, **_ALIVE)
            try:
                self._version = _install(self._owner)
                self._prepare(self._owner)
                _drop_leftovers(self._owner)
                self._table = _claim_table(self._owner, self.dim)
                self._load(0, vectors)
                self._index()
            except BaseException:
                self._owner.close()
                raise

    def _index(self) -> None:
        """Keys, statistics and the graph, after the rows are there."""
        self._run("ALTER TABLE {} ADD PRIMARY KEY (row)")
        if self._hnsw:
            # A graph that does not fit the server's usual 64 MB is built many times slower: links are about 600 B a row.
            megabytes = min(2000, max(64, self._n * (4 * self.dim + 600) // 10**6))
            self._owner.execute("SELECT set_config('maintenance_work_mem', %s, false)", (f"{megabytes}MB",))
            self._run("CREATE INDEX ON {} USING hnsw (vec vector_ip_ops)")
        self._run("ANALYZE {}")

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        """Let a connection send vectors, and look as deep as the options say."""
        connection.execute(  # wherever the extension was installed
            "SELECT set_config('search_path', quote_ident(nspname), false)"
            " FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'"
        )
        register(connection)
        if self._hnsw and self._version >= (0, 8):
            # A filter throws candidates away: the graph is searched on until there are enough.
            connection.execute("SET hnsw.iterative_scan = strict_order")

    def _run(self, statement: str, *parameters: Any) -> psycopg.Cursor[Any]:
        """A statement about the table, as its owner."""
        return self._owner.execute(sql.SQL(statement).format(self._table), parameters, binary=True)

    def _load(self, first: int, vectors: Vectors) -> None:
        """COPY rows that are not there yet, numbered from `first`."""
        with (
            self._owner.cursor() as cursor,
            cursor.copy(sql.SQL("COPY {} (row, vec) FROM STDIN (FORMAT binary)").format(self._table)) as copy,
        ):
            copy.write(COPY_HEADER)
            for at in range(0, len(vectors), _BLOCK):
                part = vectors[at : at + _BLOCK]
                copy.write(copy_rows(np.arange(first + at, first + at + len(part)), part))
            copy.write(COPY_END)

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        each, last = last_of_each(rows, vectors)  # one statement may not touch a row twice
        if not len(each):
            return
        if each[0] < 0 or each[-1] >= self._n:
            raise IndexError(f"row {each[0] if each[0] < 0 else each[-1]} of {self._n}")
        with self._writing():
            self._run(
                "INSERT INTO {} AS held (row, vec) SELECT * FROM unnest(%s::int[], %s)"
                " ON CONFLICT (row) DO UPDATE SET vec = EXCLUDED.vec",
                each.tolist(),
                vector_array(self._owner, last),
            )

    def grow(self, n: int) -> None:
        if n > self._n:
            with self._writing():
                self._load(self._n, np.zeros((n - self._n, self.dim), np.float32))
            self._n = n

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        there = self._n if allowed is None else int(np.count_nonzero(allowed))
        wanted = min(k, there)
        if not wanted or not len(queries):
            return ordered(*_nothing(len(queries)), k)
        by_key = allowed is not None and there <= _FEW
        graph = self._hnsw and not by_key and wanted <= _EF_MOST
        scores, rows = self._asked(queries, wanted, allowed, graph=graph, by_key=by_key)
        if graph:
            # The graph may end before there are enough: such a query is answered by a full scan.
            short = np.flatnonzero((rows < 0).any(axis=1))
            if len(short):
                scores[short], rows[short] = self._asked(queries[short], wanted, allowed)
        return ordered(scores, rows, k)

    def _asked(
        self, queries: Vectors, k: int, allowed: Mask | None, *, graph: bool = False, by_key: bool = False
    ) -> tuple[Vectors, Rows]:
        """One statement for all queries: a scan, or a walk through the graph, for each of them."""
        parameter: Any = None
        if by_key:
            assert allowed is not None
            condition, parameter = "row = ANY(%(allowed)s::int[])", np.flatnonzero(allowed).tolist()
        elif allowed is not None:
            condition, parameter = (
                "get_bit(%(allowed)s, row) = 1",
                np.packbits(allowed, bitorder="little").tobytes(),
            )
        else:
            condition = "%(allowed)s::int IS NULL"
        statement = sql.SQL(
            "SELECT q.place::int4, found.row, found.distance::float4"
            " FROM unnest(%(queries)s) WITH ORDINALITY AS q (vec, place), LATERAL ("
            "SELECT row, vec <#> q.vec AS distance FROM {} WHERE {} ORDER BY {} LIMIT %(k)s) AS found"
        ).format(
            self._table,
            sql.SQL(condition),
            # Equal scores go to the lower row, except in the graph: it knows one order.
            sql.SQL("vec <#> q.vec" if graph else "vec <#> q.vec, row"),
        )
        scores, rows = (
            np.full((len(queries), k), -np.inf, np.float32),
            np.full((len(queries), k), -1, np.int64),
        )
        with self._searching() as connection, connection.transaction():
            self._tune(connection, graph=graph, k=k)
            found = connection.execute(
                statement,
                {"queries": vector_array(connection, queries), "allowed": parameter, "k": k},
                binary=True,
            ).fetchall()
        if found:
            place, row, distance = (np.array(column) for column in zip(*found, strict=True))
            order_of = np.argsort(place, kind="stable")
            place, row, distance = place[order_of] - 1, row[order_of], distance[order_of]
            column = np.arange(len(place)) - np.searchsorted(place, place)
            rows[place, column], scores[place, column] = row, -distance
        return scores, rows

    def _tune(self, connection: psycopg.Connection[Any], *, graph: bool, k: int) -> None:
        """For this transaction: candidates for k answers, or no graph at all where the answer is to be exact."""
        if graph:
            ef = min(_EF_MOST, max(self._options.ef, k))
            # The scan stops at a number of tuples whatever it has: here only at the number that there are.
            connection.execute(
                "SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_seqscan', 'off', true),"
                " set_config('hnsw.max_scan_tuples', %s, true)",
                (str(ef), str(max(20_000, self._n))),
            )
        elif self._hnsw:
            connection.execute("SELECT set_config('enable_indexscan', 'off', true)")

    def vectors(self) -> Vectors:
        held = np.zeros((self._n, self.dim), np.float32)
        with self._searching() as connection, connection.cursor() as cursor:
            data = bytearray()
            with cursor.copy(
                sql.SQL("COPY {} (row, vec) TO STDOUT (FORMAT binary)").format(self._table)
            ) as copy:
                for block in copy:
                    data += block
        found = from_copy(data, self.dim)
        held[found["row"]] = found["values"]
        return held

    @contextmanager
    def _searching(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection for one search; as many as run side by side, up to a bound."""
        with self._slots, _faults(self._url):
            with self._idle_lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                # A new one after a fault: a server that crashed has emptied the table, and would answer with nothing.
                self._ask_owner()
                connection = psycopg.connect(self._url, autocommit=True, **_ALIVE)
                self._prepare(connection)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            with self._idle_lock:
                self._idle.append(connection)

    def _ask_owner(self) -> None:
        try:
            self._owner.execute("SELECT 1")
        except psycopg.OperationalError:
            self.lost = True
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction of the owner: a write is there as a whole or not at all."""
        with _faults(self._url):
            self._ask_owner()
            with self._owner.transaction():
                yield

    def read(self, rows: Rows) -> None:
        """A server has them."""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for connection in self._idle:
            connection.close()
        try:
            with _faults(self._url):
                self._run("DROP TABLE IF EXISTS {}")
        except UnreachableError:
            pass  # the lock is gone with the connection: the next index that opens drops it
        finally:
            self._owner.close()


class PgVectorHnsw(PgVector):
    """The same, searched through an HNSW graph that is built after the load and kept up by every write."""

    exact = False
    _hnsw = True


_EXTENSION = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
_ALIVE: dict[str, Any] = {
    # A connection that nobody answers on is given up within seconds, as the ledger's are.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
    "application_name": "hotrefresh index",
    "options": "-c jit=off",  # it compiles for longer than a search takes
}


def _checked(url: str | None) -> str:
    if url is None:
        raise UsageError(
            "the pgvector backend needs a database: set HOTREFRESH_INDEX_URL=postgresql://user@host/db."
        )
    url = url.replace("postgresql+psycopg://", "postgresql://", 1)
    if not url.startswith(("postgresql://", "postgres://")):
        raise UsageError(
            f"index_url {masked(url)!r} is not a PostgreSQL URL; write postgresql://user@host/database."
        )
    return url


@contextmanager
def _faults(url: str) -> Iterator[None]:
    """Whatever goes wrong at the server is an UnreachableError with its first line; no password is in it."""
    try:
        yield
    except psycopg.Error as error:
        where = masked(url)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, psycopg.errors.UndefinedTable):
            reason = "the table of this index is gone (dropped, or its lock was lost); restart the replica"
        raise UnreachableError(f"the index at {where} cannot be used: {masked(reason)}.") from error


def _install(connection: psycopg.Connection[Any]) -> tuple[int, ...]:
    """The version of pgvector; it and the schema of our tables are made where they are missing and we may.

    Raises:
        UnreachableError: the server has no pgvector, or we may not install it; what to do about it.
    """
    connection.execute("SELECT pg_advisory_lock(%s, 0)", (LOCKS,))  # of two at once the second would fail
    try:
        if connection.execute(_EXTENSION).fetchone() is None:
            connection.execute("CREATE EXTENSION vector")
    except psycopg.errors.InsufficientPrivilege as error:
        raise UnreachableError(
            "pgvector is not installed in this database, and this user may not: have a superuser run "
            "`CREATE EXTENSION vector` in it once (a managed server has a role or a switch for it)."
        ) from error
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
        raise UnreachableError(
            "this PostgreSQL server has no pgvector: install it there (a package such as postgresql-17-pgvector, or the "
            "image pgvector/pgvector), or choose another index backend."
        ) from error
    try:
        if _scalar(connection, "SELECT to_regnamespace(%s) IS NULL", (SCHEMA,)):
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise UnreachableError(
            f"this user may not make the schema {SCHEMA} for the index's tables: have the database's owner run "
            f"`CREATE SCHEMA {SCHEMA} AUTHORIZATION <user>`, or `GRANT CREATE ON DATABASE … TO <user>`."
        ) from error
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s, 0)", (LOCKS,))
    return tuple(int(part) for part in _scalar(connection, _EXTENSION, ()).split(".")[:2])


def _drop_leftovers(connection: psycopg.Connection[Any]) -> None:
    """Drop the tables whose process is dead: their lock is free."""
    names = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname ~ '^vectors_[0-9]+$'",
        (SCHEMA,),
    ).fetchall()
    for (name,) in names:
        number = int(name.removeprefix("vectors_"))
        if _scalar(connection, "SELECT pg_try_advisory_lock(%s, %s)", (LOCKS, number)):
            try:
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(SCHEMA, name)))
            finally:
                connection.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCKS, number))


def _claim_table(connection: psycopg.Connection[Any], dim: int) -> sql.Identifier:
    """A table that nobody else uses, and the lock that says so, taken before the table is there to be dropped."""
    while True:
        number = secrets.randbelow(2**31 - 1) + 1
        if _scalar(connection, "SELECT pg_try_advisory_lock(%s, %s)", (LOCKS, number)):
            break
    table = sql.Identifier(SCHEMA, f"vectors_{number}")
    # PLAIN: kept in the row itself, as long as it fits a page, so that a scan reads no second table.
    connection.execute(
        sql.SQL("CREATE UNLOGGED TABLE {} (row int4 NOT NULL, vec vector({}) STORAGE {} NOT NULL)").format(
            table,
            sql.Literal(dim),
            sql.SQL("PLAIN" if 4 * dim < 7000 else "EXTERNAL"),
        )
    )
    return table


def _scalar(connection: psycopg.Connection[Any], statement: str, parameters: Sequence[Any]) -> Any:
    found = connection.execute(statement, parameters).fetchone()
    assert found is not None
    return found[0]


def _nothing(queries: int) -> tuple[Vectors, Rows]:
    return np.zeros((queries, 0), np.float32), np.zeros((queries, 0), np.int64)
