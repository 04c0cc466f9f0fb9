"""Leases that ran out are counted, and commits are timed.

Revision ID: 0009
"""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"

FOLDER = Path(__file__).parents[1] / "sql"

DOWN = """
ALTER TABLE batch DROP COLUMN previous_commit_s;
DROP TABLE lease_expiry;
"""


def upgrade() -> None:
    _run((FOLDER / "0009_lease_expiry.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
