"""The strategy of a rollout: how an upgrade treats the stored embeddings.

Revision ID: 0005
"""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"

FOLDER = Path(__file__).parents[1] / "sql"

# The release before knows no other strategy: it would zero vectors, or plan what has no original.
REFUSE = """
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM rollout WHERE strategy IN ('transform', 'query-adapter')
               AND state NOT IN ('cancelled', 'rolled_back', 'failed') AND reclaimed_at IS NULL) THEN
        RAISE EXCEPTION 'a gallery is served by a transform or query-adapter rollout, which the release before cannot read: '
            'roll it back, or replace it by a rollout that re-embeds, before this downgrade';
    END IF;
END
$$
"""
DOWN = """
DROP SCHEMA reporting CASCADE;
ALTER TABLE rollout DROP COLUMN strategy, DROP COLUMN lifted_items;
"""


def upgrade() -> None:
    for name in ("0005_strategies.sql", "0005_views.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(REFUSE)
    _run(DOWN)
    for name in ("0003_views.sql", "dashboard_role.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
