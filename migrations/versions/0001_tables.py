"""The ledger's tables and the two functions that read an item's version from them.

Revision ID: 0001
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None

SQL = Path(__file__).parents[1] / "sql" / "0001_tables.sql"
# Children before parents.
TABLES = """
audit worker gate_decision curve_point flip evaluation serving rejected quarantine band_progress progress log_event
batch plan_chunk rollout certificate relevance query query_set item gallery_log gallery adapter model
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SQL.read_text(encoding="utf-8"), execution_options={"no_parameters": True})


def downgrade() -> None:
    op.execute("DROP FUNCTION embedding_version(bigint, bigint)")
    op.execute("DROP FUNCTION rank_of(bigint, bigint)")
    for table in TABLES.split():
        op.execute(f"DROP TABLE {table}")
