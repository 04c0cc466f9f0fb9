"""A gallery's background set, and thresholds of scores adjusted by it.

Revision ID: 0018
"""

from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0017"

FOLDER = Path(__file__).parents[1] / "sql"

DOWN = """
DROP VIEW reporting.match_threshold;
DELETE FROM match_threshold WHERE scores <> 'served';
ALTER TABLE match_threshold DROP CONSTRAINT match_threshold_pkey, DROP COLUMN scores, DROP COLUMN background_id,
    DROP COLUMN background_n, ADD PRIMARY KEY (rollout_id, query_set_id, seq);
DROP TABLE background_set;
CREATE VIEW reporting.match_threshold AS
SELECT t.rollout_id AS rollout, g.name AS gallery, s.name AS queryset, t.seq,
       t.items::double precision / nullif(r.n_items, 0) AS coverage, t.n, t.true_pairs,
       t.micro_ap, t.recall_at_p90, t.threshold, t.old_micro_ap, t.old_recall_at_p90, t.old_threshold,
       t.accepted, t.accepted_right, t.lost, t.gained, t.at
FROM match_threshold t
JOIN rollout r ON r.id = t.rollout_id
JOIN query_set s ON s.id = t.query_set_id
JOIN gallery g ON g.id = r.gallery_id;
"""


def upgrade() -> None:
    for name in ("0018_background.sql", "dashboard_role.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)
    _run((FOLDER / "dashboard_role.sql").read_text(encoding="utf-8"))
    _run((FOLDER / "0004_roles.sql").read_text(encoding="utf-8"))


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
