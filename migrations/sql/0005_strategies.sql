-- How an upgrade treats the stored embeddings is written with the rollout. Rows of before get the strategy they had.

ALTER TABLE rollout
    ADD COLUMN strategy text NOT NULL DEFAULT 'reembed'
        CHECK (strategy IN ('reembed', 'transform-then-reembed', 'transform', 'query-adapter')),
    ADD COLUMN lifted_items bigint NOT NULL DEFAULT 0 CHECK (lifted_items >= 0);  -- rows of the table of lifted vectors
UPDATE rollout SET strategy = 'transform-then-reembed', lifted_items = plan_items WHERE adapter_id IS NOT NULL;
ALTER TABLE rollout
    ADD CONSTRAINT rollout_strategy_adapter CHECK ((strategy = 'reembed') = (adapter_id IS NULL)),
    ADD CONSTRAINT rollout_strategy_lifted
        CHECK (lifted_items = 0 OR strategy IN ('transform-then-reembed', 'transform'));
