-- Shadow and canary: which part of a rollout's traffic the new system answers, and how the two systems' answers compare.

-- One row a change; the highest revision counts. A rollout without a row: the new system answers everything.
CREATE TABLE traffic_change (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    revision    integer NOT NULL CHECK (revision > 0),
    canary      double precision NOT NULL CHECK (canary BETWEEN 0 AND 100),   -- percent
    shadow      double precision NOT NULL CHECK (shadow BETWEEN 0 AND 1),     -- part of the queries
    actor       text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, revision)
);

ALTER TABLE log_event
    DROP CONSTRAINT log_event_kind_check,
    ADD CONSTRAINT log_event_kind_check CHECK (kind IN ('deployed', 'finalized', 'reset', 'deleted', 'traffic'));

-- Roll-ups that servers add to every few seconds: at most 21 rows a rollout, one for each 5 % of coverage. Whole numbers, as in churn.
CREATE TABLE shadow_count (
    rollout_id      bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    stage           smallint NOT NULL CHECK (stage BETWEEN 0 AND 20),         -- coverage in twentieths, rounded down
    n               bigint NOT NULL DEFAULT 0,      -- queries that both systems answered
    shared          bigint[] NOT NULL CHECK (cardinality(shared) > 0),        -- at depth 1..k: rows in both lists, over the n queries
    labelled        bigint NOT NULL DEFAULT 0,      -- of them by an item that has a label
    both_right      bigint NOT NULL DEFAULT 0,
    negative_flips  bigint NOT NULL DEFAULT 0,
    positive_flips  bigint NOT NULL DEFAULT 0,
    both_wrong      bigint NOT NULL DEFAULT 0,
    dropped         bigint NOT NULL DEFAULT 0,      -- not compared: too many waited
    failed          bigint NOT NULL DEFAULT 0,      -- not compared: the other system could not answer
    last_seq        bigint NOT NULL DEFAULT 0,
    first_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (rollout_id, stage),
    CHECK (both_right + negative_flips + positive_flips + both_wrong = labelled AND labelled <= n)
);

-- The newest queries that were answered differently, so many a rollout. What was asked is not here unless a setting says so.
CREATE TABLE shadow_sample (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    at          timestamptz NOT NULL,
    served      text NOT NULL CHECK (served IN ('old', 'new')),
    seq         bigint NOT NULL,
    coverage    double precision NOT NULL,
    old_rows    bigint[] NOT NULL,
    old_scores  real[] NOT NULL,
    new_rows    bigint[] NOT NULL,
    new_scores  real[] NOT NULL,
    content     text
);
CREATE INDEX shadow_sample_rollout ON shadow_sample (rollout_id, id);

CREATE VIEW reporting.traffic AS
SELECT t.rollout_id AS rollout, g.name AS gallery, t.revision, t.canary, t.shadow, t.actor, t.at,
       NOT EXISTS (SELECT FROM traffic_change n WHERE n.rollout_id = t.rollout_id AND n.revision > t.revision) AS newest
FROM traffic_change t
JOIN rollout r ON r.id = t.rollout_id
JOIN gallery g ON g.id = r.gallery_id;

-- Rank-biased overlap as in churn_summary. `label_…`: by the label of the item that was asked for, never a query set's flips.
CREATE VIEW reporting.shadow AS
SELECT c.rollout_id AS rollout, g.name AS gallery, c.stage / 20.0::double precision AS coverage_from, cardinality(c.shared) AS k, c.n,
       c.shared[cardinality(c.shared)] / nullif(c.n::double precision * cardinality(c.shared), 0) AS overlap,
       greatest(0, 1 - lost.lost / nullif(c.n, 0)) AS rbo, p.p,
       (c.n - c.shared[1])::double precision / nullif(c.n, 0) AS first_changed,
       c.labelled AS label_n, c.both_right AS label_both_right, c.negative_flips AS label_negative_flips,
       c.positive_flips AS label_positive_flips, c.both_wrong AS label_both_wrong,
       c.negative_flips::double precision / nullif(c.labelled, 0) AS label_negative_flip_rate,
       c.dropped, c.failed, c.last_seq, c.first_at, c.last_at
FROM shadow_count c
JOIN rollout r ON r.id = c.rollout_id
JOIN gallery g ON g.id = r.gallery_id
CROSS JOIN LATERAL (SELECT coalesce((r.config ->> 'churn_p')::double precision, 0.9) AS p) p
CROSS JOIN LATERAL (
    SELECT sum((c.n - shared / d::double precision) * p.p ^ d) * (1 - p.p) / p.p
           + (c.n - c.shared[cardinality(c.shared)] / cardinality(c.shared)::double precision) * p.p ^ cardinality(c.shared) AS lost
    FROM unnest(c.shared) WITH ORDINALITY AS depth (shared, d)) lost;

CREATE VIEW reporting.shadow_samples AS
SELECT s.rollout_id AS rollout, s.id, s.at, s.served, s.seq, s.coverage, s.old_rows, s.old_scores, s.new_rows, s.new_scores, s.content
FROM shadow_sample s;
