"""Items of several modalities, and models of different ones over the life of a gallery.

Revision ID: 0019
"""

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0018"

FOLDER = Path(__file__).parents[1] / "sql"

DOWN = """
ALTER TABLE query_set ALTER COLUMN modality DROP NOT NULL;
UPDATE query_set s SET modality = NULL FROM gallery g WHERE g.id = s.gallery_id AND s.modality = g.modality;
ALTER TABLE gallery DROP COLUMN other_modalities;
ALTER TABLE item DROP COLUMN other_uris;
"""


def upgrade() -> None:
    _run((FOLDER / "0019_modalities.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
