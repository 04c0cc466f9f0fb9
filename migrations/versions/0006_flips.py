"""Flips at any k, by slices of the queries, and by cause; what gates decided, and from what.

Revision ID: 0006
"""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"

FOLDER = Path(__file__).parents[1] / "sql"

# The release before knows k = 1 and whole query sets only; their rows stay, the others would be counted twice by it.
DOWN = """
DROP SCHEMA reporting CASCADE;
DELETE FROM evaluation WHERE slice <> 'all' OR k <> 1;
DELETE FROM flip WHERE k <> 1;
ALTER TABLE evaluation DROP CONSTRAINT evaluation_pkey, DROP COLUMN slice, DROP COLUMN point,
    ADD PRIMARY KEY (rollout_id, query_set_id, seq);
DROP INDEX evaluation_seq;
DROP INDEX batch_failed;
DROP INDEX audit_target;
DROP INDEX audit_at;
DROP INDEX flip_seq;
DROP INDEX flip_open;
ALTER TABLE flip DROP CONSTRAINT flip_pkey, DROP COLUMN k, DROP COLUMN cause,
    ADD PRIMARY KEY (rollout_id, query_set_id, query_no, reference, opened_seq);
CREATE INDEX flip_open ON flip (rollout_id, query_set_id, reference) WHERE healed_seq IS NULL;
ALTER TABLE query DROP COLUMN attributes;
DROP INDEX gate_newest;
ALTER TABLE gate_decision DROP COLUMN query_set, DROP COLUMN measure, DROP COLUMN slice, DROP COLUMN k, DROP COLUMN seq,
    DROP COLUMN reason, DROP COLUMN error, DROP COLUMN times, DROP COLUMN last_at;
"""


def upgrade() -> None:
    _run((FOLDER / "0006_flips.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)
    for name in ("0003_views.sql", "dashboard_role.sql", "0005_views.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
