"""Items have attributes, which searches are filtered by.

Revision ID: 0011
"""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"

FOLDER = Path(__file__).parents[1] / "sql"

DOWN = """
DROP TABLE planned_content;
ALTER TABLE late_item DROP COLUMN content;
DROP INDEX item_changed;
ALTER TABLE item DROP COLUMN first_content, DROP COLUMN attributes;
"""


def upgrade() -> None:
    _run((FOLDER / "0011_attributes.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
