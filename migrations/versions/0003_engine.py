"""Batches as ranges of ranks, late items, deletions, wake-ups in an outbox, duties; the views with them.

A worker of the release before cannot work on this schema: it says so and stops, its leases end by themselves.

Revision ID: 0003
"""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

FOLDER = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    for name in ("0003_engine.sql", "0003_views.sql", "dashboard_role.sql"):
        _run(name)


def downgrade() -> None:
    for name in ("0003_downgrade.sql", "0002_views.sql", "dashboard_role.sql"):
        _run(name)


def _run(name: str) -> None:
    sql = (FOLDER / name).read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
