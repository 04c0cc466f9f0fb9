"""Downstream modules and their certificates.

Revision ID: 0017
"""

from pathlib import Path

from alembic import op

revision = "0017"
down_revision = "0016"

FOLDER = Path(__file__).parents[1] / "sql"

DOWN = """
DROP VIEW reporting.downstream_certificates, reporting.downstream_modules;
DROP TABLE downstream_certificate, downstream_module;
"""


def upgrade() -> None:
    for name in ("0017_downstream.sql", "dashboard_role.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
