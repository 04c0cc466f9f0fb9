-- Queries of another modality than a gallery's items: who embeds them, and what their certificates are of.

-- null: the gallery's own.
ALTER TABLE query_set ADD COLUMN modality text CHECK (modality IN ('image', 'text', 'video'));

-- The model that embeds queries of `modality` into the space of `model_id`. One tower may serve several models.
CREATE TABLE query_tower (
    model_id        bigint NOT NULL REFERENCES model,
    modality        text NOT NULL CHECK (modality IN ('image', 'text', 'video')),
    tower_model_id  bigint NOT NULL REFERENCES model,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (model_id, modality),
    CHECK (model_id <> tower_model_id)
);

-- Where queries are a tower's (query_model_id), the model whose space it emits; null: they are the query model's own. A frozen
-- tower serves several models, and a refresh towards one of them says nothing of another.
ALTER TABLE certificate ADD COLUMN tower_of_model_id bigint REFERENCES model;
