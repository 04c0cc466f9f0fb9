"""The reporting views, and the role that may read them and nothing else.

Revision ID: 0002
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = Path(__file__).parents[1] / "sql" / "0002_views.sql"

# A managed database may not let us create roles: then the views exist and the role is the administrator's to make.
ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'hotrefresh_dashboard') THEN
        CREATE ROLE hotrefresh_dashboard NOLOGIN;
    END IF;
    GRANT USAGE ON SCHEMA reporting TO hotrefresh_dashboard;
    GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO hotrefresh_dashboard;
    ALTER ROLE hotrefresh_dashboard SET statement_timeout = '2s';
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'no right to create the role hotrefresh_dashboard: create it and grant SELECT on schema reporting';
END
$$
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(SQL.read_text(encoding="utf-8"), execution_options={"no_parameters": True})
    op.get_bind().exec_driver_sql(ROLE, execution_options={"no_parameters": True})


def downgrade() -> None:
    op.execute("DROP SCHEMA reporting CASCADE")
