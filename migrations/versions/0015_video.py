"""Models embed videos, and galleries hold them.

Revision ID: 0015
"""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    _allow("'image', 'text', 'video'")


def downgrade() -> None:
    # Fails while there are videos: they would have no place in the older schema.
    _allow("'image', 'text'")


def _allow(modalities: str) -> None:
    for table in ("model", "gallery"):
        op.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT {table}_modality_check, "
            f"ADD CONSTRAINT {table}_modality_check CHECK (modality IN ({modalities}))"
        )
