"""Shadow and canary.

Revision ID: 0012
"""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"

FOLDER = Path(__file__).parents[1] / "sql"

# The release before gives all traffic to the new system: it must not come to serve where a canary holds users back.
# A place of the log is never taken away: its entries become ones at which the release before reads what is served anew.
DOWN = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM hotrefresh.rollout r
               JOIN LATERAL (SELECT canary FROM hotrefresh.traffic_change t WHERE t.rollout_id = r.id
                             ORDER BY revision DESC LIMIT 1) AS newest ON newest.canary < 100
               WHERE r.state NOT IN ('finalized', 'superseded', 'cancelled', 'rolled_back', 'failed')) THEN
        RAISE EXCEPTION 'a canary goes on: promote it or roll it back (the release before gives all traffic to the new model)';
    END IF;
END
$$;
DROP VIEW reporting.shadow_samples, reporting.shadow, reporting.traffic;
DROP TABLE shadow_sample, shadow_count, traffic_change;
UPDATE log_event SET kind = 'reset' WHERE kind = 'traffic';
ALTER TABLE log_event
    DROP CONSTRAINT log_event_kind_check,
    ADD CONSTRAINT log_event_kind_check CHECK (kind IN ('deployed', 'finalized', 'reset', 'deleted'));
"""


def upgrade() -> None:
    for name in ("0012_traffic.sql", "dashboard_role.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
