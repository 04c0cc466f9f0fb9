"""Query towers: a gallery is asked in other modalities than its own.

Revision ID: 0016
"""

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"

FOLDER = Path(__file__).parents[1] / "sql"

# A certificate of a tower would read as one of the tower itself, which the older schema would take for a model of the gallery.
DOWN = """
DELETE FROM certificate WHERE tower_of_model_id IS NOT NULL;
ALTER TABLE certificate DROP COLUMN tower_of_model_id;
DROP TABLE query_tower;
ALTER TABLE query_set DROP COLUMN modality;
"""


def upgrade() -> None:
    _run((FOLDER / "0016_towers.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
