"""The reporting views, and the role that may read them and nothing else.

Revision ID: 0002
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = Path(__file__).parents[1] / "sql" / "0002_views.sql"
ROLE = SQL.with_name("dashboard_role.sql")


def upgrade() -> None:
    for file in (SQL, ROLE):
        op.get_bind().exec_driver_sql(
            file.read_text(encoding="utf-8"), execution_options={"no_parameters": True}
        )


def downgrade() -> None:
    op.execute("DROP SCHEMA reporting CASCADE")
