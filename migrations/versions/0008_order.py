"""Orders that follow what is seen: demand of items, and revisions of a plan.

Revision ID: 0008
"""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"

FOLDER = Path(__file__).parents[1] / "sql"

# The release before reads every batch by the first plan: it would put vectors of a later revision on other items.
REFUSE = """
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM plan_revision p JOIN rollout r ON r.id = p.rollout_id
               WHERE r.state NOT IN ('cancelled', 'rolled_back', 'failed') AND r.reclaimed_at IS NULL) THEN
        RAISE EXCEPTION 'a gallery holds a rollout whose plan was re-ranked, which the release before cannot read: '
            'roll it back, or finish a newer rollout and reclaim this one, before this downgrade';
    END IF;
END
$$
"""
# Only what this migration replaced, and what is built on it: other views are other migrations'.
DOWN = """
DROP VIEW reporting.queue_status, reporting.rollout_status;
ALTER TABLE batch DROP CONSTRAINT batch_claimed_revision, DROP COLUMN plan_revision, DROP COLUMN claimed_revision;
DROP TABLE plan_revision;
DROP TABLE demand_chunk;
DROP TABLE demand;
"""


def upgrade() -> None:
    _run(_read("0008_order.sql"))


def downgrade() -> None:
    _run(REFUSE)
    _run(DOWN)
    _run(_read("0005_views.sql"))
    views = _read("0003_views.sql")
    first = views.index("CREATE VIEW reporting.queue_status")
    _run(views[first : views.index(";", first) + 1])
    for name in ("dashboard_role.sql", "0004_roles.sql"):
        _run(_read(name))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
