"""Churn against the old system, and clicks as weak relevance.

Revision ID: 0007
"""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"

FOLDER = Path(__file__).parents[1] / "sql"

# The release before knows neither kind of query set: they go, with what was counted on them. gate_decisions stays
# as it is: it shows what it showed.
DOWN = """
DROP VIEW reporting.churn_summary, reporting.click_summary, reporting.click_items;
DROP TABLE churn, click_evaluation, click_change;
DELETE FROM query_set WHERE relevance IN ('clicks', 'none');
ALTER TABLE query_set
    DROP CONSTRAINT query_set_relevance_check,
    ADD CONSTRAINT query_set_relevance_check CHECK (relevance IN ('label', 'pairs'));
"""


def upgrade() -> None:
    for name in ("0007_churn.sql", "dashboard_role.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
