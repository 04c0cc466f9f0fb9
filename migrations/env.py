"""Alembic's environment: our schema, an advisory lock so that two upgrades at once take turns, no offline mode."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine, text

# Any constant will do; it only has to be the same in every process that migrates.
ADVISORY_LOCK = 7_261_835_409_127


def run(connection: Connection) -> None:
    """Migrate on one connection, in one transaction, holding the lock until it ends."""
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    try:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS hotrefresh"))
        connection.execute(text("SET search_path = hotrefresh"))
        connection.commit()
        context.configure(
            connection=connection, version_table_schema="hotrefresh", transaction_per_migration=False
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "")
    with engine.connect() as own:
        run(own)
    engine.dispose()
