-- A codec is a model whose input is another model's embeddings; a recode makes codes of what is stored.

ALTER TABLE model
    ADD COLUMN base_model_id bigint REFERENCES model;  -- of a codec: the model whose embeddings it encodes

ALTER TABLE rollout
    DROP CONSTRAINT rollout_strategy_check,
    ADD CONSTRAINT rollout_strategy_check
        CHECK (strategy IN ('reembed', 'recode', 'transform-then-reembed', 'transform', 'query-adapter')),
    DROP CONSTRAINT rollout_strategy_adapter,
    ADD CONSTRAINT rollout_strategy_adapter CHECK ((strategy IN ('reembed', 'recode')) = (adapter_id IS NULL));

-- A quantisation flip: float and code of one and the same model version disagree.
ALTER TABLE flip
    DROP CONSTRAINT flip_cause_check,
    ADD CONSTRAINT flip_cause_check CHECK (cause IN ('mixed_stage', 'model', 'quantisation'));
ALTER TABLE click_change
    DROP CONSTRAINT flip_cause_check,
    ADD CONSTRAINT flip_cause_check CHECK (cause IN ('mixed_stage', 'model', 'quantisation'));
