"""Codecs: models whose input is another model's embeddings.

Revision ID: 0013
"""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"

FOLDER = Path(__file__).parents[1] / "sql"

# The release before takes a codec for an encoder of items, and codes for vectors of four bytes a dimension.
DOWN = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM hotrefresh.rollout r JOIN hotrefresh.model m ON m.id = r.to_model_id
               WHERE m.base_model_id IS NOT NULL AND r.state NOT IN ('cancelled', 'rolled_back', 'failed')
                     AND r.reclaimed_at IS NULL) THEN
        RAISE EXCEPTION 'a gallery holds codes, which the release before cannot read: roll that rollout back first';
    END IF;
END
$$;
UPDATE rollout SET strategy = 'reembed' WHERE strategy = 'recode';
ALTER TABLE rollout
    DROP CONSTRAINT rollout_strategy_check,
    ADD CONSTRAINT rollout_strategy_check
        CHECK (strategy IN ('reembed', 'transform-then-reembed', 'transform', 'query-adapter')),
    DROP CONSTRAINT rollout_strategy_adapter,
    ADD CONSTRAINT rollout_strategy_adapter CHECK ((strategy = 'reembed') = (adapter_id IS NULL));
UPDATE flip SET cause = 'model' WHERE cause = 'quantisation';
UPDATE click_change SET cause = 'model' WHERE cause = 'quantisation';
ALTER TABLE flip
    DROP CONSTRAINT flip_cause_check,
    ADD CONSTRAINT flip_cause_check CHECK (cause IN ('mixed_stage', 'model'));
ALTER TABLE click_change
    DROP CONSTRAINT flip_cause_check,
    ADD CONSTRAINT flip_cause_check CHECK (cause IN ('mixed_stage', 'model'));
ALTER TABLE model DROP COLUMN base_model_id;
"""


def upgrade() -> None:
    _run((FOLDER / "0013_codecs.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(DOWN)


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
