-- Downstream modules: frozen, trained by others on a model's embeddings, and what a newer model is worth to each.

CREATE TABLE downstream_module (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE,
    model_id      bigint NOT NULL REFERENCES model,     -- whose space it takes
    architecture  text NOT NULL,
    metric        text NOT NULL,
    dim           integer NOT NULL CHECK (dim > 0),
    digest        text NOT NULL,                        -- of its weights; the fingerprint is of what it does with them, too
    fingerprint   text NOT NULL,
    uri           text NOT NULL,
    files         jsonb NOT NULL,
    manifest      jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    retired_at    timestamptz                           -- nobody uses it any more: it holds no rollout back
);
CREATE INDEX downstream_module_model ON downstream_module (model_id);

CREATE TABLE downstream_certificate (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    module_id      bigint NOT NULL REFERENCES downstream_module,
    model_id       bigint NOT NULL REFERENCES model,    -- whose embeddings it was given
    fingerprint    text NOT NULL,                       -- the module's at that time
    source         text NOT NULL,                       -- the labelled items that it was measured on
    n              integer NOT NULL CHECK (n >= 0),     -- what the metric is the mean of
    old_value      double precision,                    -- with its own model's embeddings
    new_value      double precision,
    low            double precision,                    -- 95 % interval of new - old
    high           double precision,
    accepted_loss  double precision NOT NULL CHECK (accepted_loss BETWEEN 0 AND 1),
    verdict        text NOT NULL CHECK (verdict IN ('certified', 'refused', 'inconclusive')),
    reason         text NOT NULL,
    measured       jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((low IS NULL) = (high IS NULL) AND low <= high),
    CHECK (verdict = 'inconclusive' OR num_nulls(old_value, new_value) = 0)
);
CREATE INDEX downstream_certificate_newest ON downstream_certificate (module_id, model_id, id);

CREATE VIEW reporting.downstream_modules AS
SELECT d.name AS module, m.name AS model, d.architecture, d.metric, d.dim, d.digest, d.created_at, d.retired_at
FROM downstream_module d
JOIN model m ON m.id = d.model_id;

CREATE VIEW reporting.downstream_certificates AS
SELECT c.id, d.name AS module, own.name AS own_model, m.name AS model, d.metric, c.old_value, c.new_value, c.n, c.low, c.high,
       c.accepted_loss, c.verdict, c.reason, c.source, c.created_at,
       c.id = max(c.id) OVER (PARTITION BY c.module_id, c.model_id) AS newest
FROM downstream_certificate c
JOIN downstream_module d ON d.id = c.module_id
JOIN model own ON own.id = d.model_id
JOIN model m ON m.id = c.model_id;
