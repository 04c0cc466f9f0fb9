"""The way into the ledger: one engine, its schema, its migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from orchestrator.errors import ConflictError, UnreachableError, UsageError
from orchestrator.settings import masked

HEAD = "0019"
IDLE_IN_TRANSACTION_S = 20


def open_engine(url: str, *, pooled: bool = True) -> Engine:
    """An engine on the ledger. Connections are made lazily; `check` says whether the server answers.

    Raises:
        UsageError: the URL is not one of PostgreSQL, or its password is not encoded.
    """
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.split("://", 1)[1]
    if not url.startswith("postgresql+psycopg://"):
        raise UsageError(
            f"database_url {masked(url)!r} is not a PostgreSQL URL; write postgresql://user@host/database."
        )
    # The rest of such a password would be taken for the host, and be named in every error.
    if url.split("://", 1)[1].split("/", 1)[0].count("@") > 1:
        raise UsageError(
            f"database_url {masked(url)!r} holds more than one @: write %40 for an @ in a password."
        )
    options: dict[str, Any] = (
        {"pool_size": 4, "max_overflow": 8, "pool_pre_ping": True} if pooled else {"poolclass": NullPool}
    )
    return create_engine(
        url,
        connect_args={
            "options": "-c search_path=hotrefresh -c timezone=UTC -c plan_cache_mode=force_generic_plan "
            # A process that was frozen in the middle of a transaction must not hold its row locks for ever.
            f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S * 1000}",
            # A connection that nobody answers on is given up within these seconds, whatever the kernel's default.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "connect_timeout": 5,
            "application_name": "hotrefresh",
            "prepare_threshold": 1,  # the same few statements, thousands of times
        },
        **options,
    )


def check(engine: Engine) -> None:
    """Raise UnreachableError unless the server answers and is PostgreSQL 15 or newer."""
    try:
        with engine.connect() as connection:
            version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise UnreachableError(
            f"the database at {masked(engine.url.render_as_string(hide_password=True))} does not answer: {reason}. "
            "Start it, or correct HOTREFRESH_DATABASE_URL, or unset it to use the embedded server."
        ) from error
    if version < 150_000:
        raise UsageError(f"PostgreSQL {version // 10_000} is too old: 15 or newer is needed.")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction; connection faults become UnreachableError, lock waits and deadlocks ConflictError."""
    with _faults(), engine.begin() as connection:
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection whose statements all see one instant; faults become the errors of `transaction`."""
    with _faults(), engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        yield connection


def limit_statements(engine: Engine, seconds: float) -> None:
    """From now on the server ends every statement of this engine after so long."""

    @event.listens_for(engine, "do_connect")
    def limited(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        parameters["options"] += f" -c statement_timeout={round(seconds * 1000)}"

    engine.dispose()  # those that are open know nothing of it


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated or (isinstance(error, OperationalError) and not _sqlstate(error)):
            raise UnreachableError(
                f"the database went away: {str(error.orig).strip().splitlines()[0]}. What was committed stands; try again."
            ) from error
        if _sqlstate(error) in {"40P01", "55P03"}:
            raise ConflictError("somebody else is changing the same rows right now; try again.") from error
        if _sqlstate(error) == "57014":
            raise UnreachableError(
                "the database took too long over a statement and was stopped; try again when it has less to do."
            ) from error
        raise


class Line:
    """A connection that one thread keeps for statements that are transactions of their own: one round trip each.

    After a fault it is opened anew at the next use. Faults become the errors of `transaction`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """The connection, in autocommit."""
        with _faults():
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                yield self._connection
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _alembic_config() -> Any:
    from pathlib import Path

    from alembic.config import Config

    import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to `revision`. Two at once take turns on an advisory lock."""
    from alembic import command

    config = _alembic_config()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the schema back to `revision` ("base": nothing is left). Data in dropped tables is lost.

    Raises:
        UsageError: no such revision.
    """
    from alembic import command
    from alembic.util import CommandError

    config = _alembic_config()
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, revision)
    except CommandError as error:
        raise UsageError(
            f"the schema cannot be taken back to {revision!r}: {error}. Name a revision, or base."
        ) from error


def current(engine: Engine) -> str | None:
    """The schema's revision, None before the first upgrade."""
    with engine.connect() as connection:
        exists = connection.exec_driver_sql("SELECT to_regclass('hotrefresh.alembic_version')").scalar_one()
        if exists is None:
            return None
        return connection.exec_driver_sql(
            "SELECT version_num FROM hotrefresh.alembic_version"
        ).scalar_one_or_none()


def ensure_schema(engine: Engine, *, ours: bool) -> None:
    """Bring an empty database, or one of ours (embedded), to this release's schema.

    Raises:
        ConflictError: somebody else's database is at another revision; changing it is `hotrefresh db upgrade`'s business.
            Or the database is empty, and this login may not make a schema.
    """
    found = current(engine)
    if found == HEAD:
        return
    if found is None or ours:
        try:
            upgrade(engine)
        except ProgrammingError as error:
            if _sqlstate(error) != "42501":
                raise
            raise ConflictError(
                f"the database holds no ledger, and {engine.url.username!r} may not make one: run `hotrefresh db upgrade` "
                "once with the owner's HOTREFRESH_DATABASE_URL, then use this login again."
            ) from error
        return
    raise ConflictError(
        f"the ledger's schema is at revision {found}, this release needs {HEAD}: run `hotrefresh db upgrade`"
        " (or this release is older than the schema: install the newer one)."
    )
