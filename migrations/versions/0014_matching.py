"""Copy detection along a refresh.

Revision ID: 0014
"""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"

FOLDER = Path(__file__).parents[1] / "sql"

DOWN = """
DROP VIEW reporting.match_threshold, reporting.flip_items;
DROP TABLE match_threshold, flip_verification;
CREATE VIEW reporting.flip_items AS
SELECT f.rollout_id AS rollout, s.name AS queryset, q.key AS query, f.kind, f.reference,
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.old_row) AS old_item,
       (SELECT i.key FROM item i WHERE i.gallery_id = s.gallery_id AND i.row = f.new_row) AS new_item,
       f.old_score, f.new_score, f.cause, f.opened_seq, f.healed_seq, f.opened_at, f.healed_at, f.k, q.attributes
FROM flip f
JOIN query_set s ON s.id = f.query_set_id
JOIN query q ON q.query_set_id = f.query_set_id AND q.no = f.query_no;
"""


def upgrade() -> None:
    for name in ("0014_matching.sql", "dashboard_role.sql", "0004_roles.sql"):
        _run((FOLDER / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)
    _run((FOLDER / "dashboard_role.sql").read_text(encoding="utf-8"))
    _run((FOLDER / "0004_roles.sql").read_text(encoding="utf-8"))


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
