"""The role that workers and commands log in with: no DDL, and no change of what the audit holds.

Revision ID: 0004
"""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = Path(__file__).parents[1] / "sql" / "0004_roles.sql"

# The role itself stays: it belongs to the whole server, where another ledger may use it.
DOWN = """
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'hotrefresh_app') THEN
        ALTER DEFAULT PRIVILEGES IN SCHEMA hotrefresh REVOKE ALL ON TABLES FROM hotrefresh_app;
        ALTER DEFAULT PRIVILEGES IN SCHEMA reporting REVOKE ALL ON TABLES FROM hotrefresh_app;
        REVOKE ALL ON ALL FUNCTIONS IN SCHEMA hotrefresh FROM hotrefresh_app;
        REVOKE ALL ON ALL TABLES IN SCHEMA hotrefresh, reporting FROM hotrefresh_app;
        REVOKE ALL ON SCHEMA hotrefresh, reporting FROM hotrefresh_app;
    END IF;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA hotrefresh TO PUBLIC;
END
$$
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SQL.read_text(encoding="utf-8"), execution_options={"no_parameters": True})


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN, execution_options={"no_parameters": True})
