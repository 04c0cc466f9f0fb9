"""Copy detection along a refresh.

Revision ID: 0014
"""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"

FOLDER = Path(__file__).parents[1] / "sql"

DOWN = """
DROP VIEW reporting.match_threshold;
DROP TABLE match_threshold;
"""


def upgrade() -> None:
    for name in ("0014_matching.sql", "dashboard_role.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
